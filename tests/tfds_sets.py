"""Small data sets in the form that TFDS gives them: ArrayRecord files."""

import io

import tensorflow_datasets as tfds
from PIL import Image

WNIDS = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()


def write_features(data_dir, name, features, records, splits=("train",)):
    """A TFDS data set with any features, the same records in every split."""
    set_name = name

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features_dict = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_dict)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples() for split in splits}

        def _generate_examples(self):
            yield from enumerate(records)

    Set(data_dir=data_dir, file_format="array_record").download_and_prepare()


def write_set(data_dir, name, splits, images, labels, config=None, feature="label"):
    """A TFDS data set of PNG images and ImageNet's classes; labels are numbers or lists of them.

    `splits` names one split, or several with a space between, which are the same.
    """
    label = tfds.features.ClassLabel(names=WNIDS)
    if isinstance(labels[0], list):
        label = tfds.features.Sequence(label)
    set_name, splits = name, splits.split()

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = set_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(encoding_format="png"), feature: label}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples() for name in splits}

        def _generate_examples(self):
            for index, image in enumerate(images):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                yield index, {"image": buffer.getvalue(), feature: labels[index]}

    if config is not None:
        config = tfds.core.BuilderConfig(name=config, version="1.0.0")
    builder = Set(data_dir=data_dir, file_format="array_record", config=config)
    builder.download_and_prepare()
