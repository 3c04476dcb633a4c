"""Data sets as random access to encoded images and labels; TFDS; matching of classes by name.

A record is {"image": bytes or uint8 [h, w, 3], "label": int}. If images have sets of labels,
`label` is int32 [MOST_LABELS], padded with -1.
"""

import collections
import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import simplejpeg
from ml_collections import ConfigDict

from effnet_jax.errors import UserError, check_choice
from effnet_jax.run import files

MOST_LABELS = 16  # The most labels of one image; ImageNet ReaL has at most 9.
IMBALANCE = 10  # The ratio of the largest class to the smallest above which a warning is given.
# The text that file managers append to the name of a copy.
COPY = re.compile(r"( copy)?( ?\(\d+\))?$")
Record = dict[str, bytes | int | np.ndarray]


class Source:
    """A split of a data set: `classes`, the names by label, and random access to its records."""

    by_content = False  # Whether `identity` covers some images, if the name doesn't identify them.

    def __init__(self, classes: tuple[str, ...], records: Sequence):
        self.classes, self._records = classes, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """The name of a record for messages."""
        raise NotImplementedError

    def shared(self, split: str) -> int:
        """The number of records that are also in another split of the same data set."""
        return 0

    def summary(self) -> str:
        """A line for the start of a run: the number of images and classes, and more about them."""
        return f"{len(self):,} images, {self._list_classes()}"

    def warnings(self) -> list[str]:
        """Lines about properties of these images that may harm training."""
        return []

    def _list_classes(self) -> str:
        first = ", ".join(self.classes[:3]) + ", ..." * (len(self.classes) > 3)
        return f"{len(self.classes):,} classes: {first}"


def alike(classes: Sequence[str], remedy: str) -> list[str]:
    """Warnings about classes with similar names; `remedy` is for those that are one class."""
    names = collections.defaultdict(list)
    for name in classes:
        plain = re.sub(r"[\s_-]+", " ", name.casefold()).strip()
        names[COPY.sub("", plain) or plain].append(repr(name))
    return [
        f"warning: the class names {' and '.join(each)} differ only in capitals, spaces or the "
        f"suffix of a copy; if they are one class, {remedy}"
        for each in [each for each in names.values() if len(each) > 1][:3]
    ]


def uneven(classes: Sequence[str], counts: np.ndarray) -> list[str]:
    """A warning if one class has many times the images of another."""
    least, most = counts.min(), counts.max()
    if most <= IMBALANCE * least:
        return []
    return [
        f"warning: class {classes[counts.argmax()]!r} has {most:,} images, more than "
        f"{IMBALANCE} times the {least:,} of {classes[counts.argmin()]!r}. Top-1 depends mostly on "
        "the large classes; mean_per_class, which can be config.checkpoint.best_metric, weighs all "
        "classes equally"
    ]


def count_by_class(classes: Sequence[str], counts: np.ndarray) -> str:
    """The smallest and the largest number of images per class, for a summary."""
    ends = dict.fromkeys((counts.argmin(), counts.argmax()))  # One entry if all are equal.
    most = " to ".join(f"{counts[at]:,} ({classes[at]})" for at in ends)
    return f"; images per class: {most if len(ends) > 1 else f'{counts[0]:,} each'}"


def first_few(names: Iterable[str]) -> str:
    """The first five names, sorted, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class Synthetic(Source):
    """`count` records of 1000 classes, which all have the same grey image."""

    def __init__(self, count: int):
        super().__init__(tuple(f"class{label:03d}" for label in range(1000)), range(count))
        grey = np.full((375, 500, 3), 128, np.uint8)
        self._image = simplejpeg.encode_jpeg(grey, colorsubsampling="420")

    def __getitem__(self, index: int) -> Record:
        return {"image": self._image, "label": index % len(self.classes)}

    def describe(self, index: int) -> str:
        return f"synthetic record {index}"


def _missing(name: str, data_dir: str) -> UserError:
    """The error for a data set that is not in `data_dir`, with the command that prepares it."""
    dataset = name.partition(":")[0]
    # A preparation has its lock and its command in DATA_DIR/NAME/VERSION.incomplete.
    for state in pathlib.Path(data_dir, dataset).glob("*.incomplete/state.json"):
        with files.Lock(state.with_name("lock"), "preparation", "choose another data set"):
            command = files.read_json(state)["command"]
        half = f"data set {name!r} is only partly prepared in {state.parent}"
        return UserError(f"{half}. Continue with:\n  {command}")
    places = pathlib.Path(data_dir, dataset).glob("**/dataset_info.json")
    if versions := sorted(str(path.parent.relative_to(data_dir)) for path in places):
        found = ", ".join(":".join(version.rsplit("/", 1)) for version in versions[:10])
        return UserError(
            f"no data set {name!r} in {data_dir}, which has {found} (config.data.name)"
        )
    remedy = "in an environment with TensorFlow, which this program doesn't need, run:\n  "
    remedy += f"tfds build {name} --data_dir={data_dir} --file_format=array_record"
    if dataset == "imagenet2012":
        remedy = "run, where DIR holds the official tars or the images in folders:\n  "
        remedy += f"effnet-jax prepare_imagenet --from=DIR --data_dir={data_dir}"
    where = f"not found in {data_dir}" if os.path.isdir(data_dir) else f"no directory {data_dir}"
    return UserError(f"data set {name!r}: {where} (config.data.data_dir); {remedy}")


def use_array_record(info: Any) -> None:
    """Makes a TFDS data set read its ArrayRecord files; raises UserError if it has none."""
    if info.file_format.value == "array_record":
        return
    if "array_record" not in (each.value for each in info.alternative_file_formats):
        raise UserError(
            f"data set {info.full_name} in {info.data_dir} is stored as {info.file_format.value}, "
            "not as ArrayRecord. With tensorflow, apache-beam and mlcroissant installed, run:\n"
            "  tfds convert_format --num_workers=1 --out_file_format=array_record "
            f"--dataset_version_dir={info.data_dir}"
        )
    info.set_file_format("array_record", override=True, override_if_initialized=True)


def array_record(path: str) -> Any:
    """A random-access reader of one ArrayRecord file."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, options="readahead_buffer_size:0")


def check_files(instructions: list[Any]) -> None:
    """Raises UserError for a missing or truncated file; the index is at the end of a file."""
    for instruction in instructions:
        path, expected, records = str(instruction.filename), instruction.examples_in_shard, 0
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing; copy or prepare the data set again")
        with contextlib.suppress(RuntimeError):
            records = array_record(path).num_records()
        if records != expected:
            found = f"{path} has {os.path.getsize(path):,} bytes, and {records} of its {expected}"
            raise UserError(f"{found} records can be read; copy or prepare the data set again")


class TfdsSource(Source):
    """A split of a TFDS data set that is stored as ArrayRecord; needs no TensorFlow.

    `image` and `label` are keys of its features, nested ones as "image/encoded". `label_count` is
    the number of classes if the label is an integer without names.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | None,
        split: str,
        label: str = "label",
        image: str = "image",
        label_count: int | None = None,
    ):
        import tensorflow_datasets as tfds

        default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        data_dir = str(pathlib.Path(data_dir or default).expanduser())
        try:
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError:
            raise _missing(name, data_dir) from None
        use_array_record(builder.info)
        features = builder.info.features
        classes = _label_names(features, name, image, label, label_count)
        decoders = _image_decoders(features, name, image)
        try:
            instructions = builder.info.splits[split].file_instructions
            records = builder.as_data_source(split, decoders=decoders)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"no split {split!r} in data set {name!r}, which has "
                f"{', '.join(sorted(builder.info.splits))} ({str(error).partition(chr(10))[0]})"
            ) from None
        check_files(instructions)
        super().__init__(classes, records)
        self._image, self._label, self._name, self._split = image, label, name, split
        self._splits = builder.info.splits

    def shared(self, split: str) -> int:
        pairs = ((a, b) for a in self._spans(self._split) for b in self._spans(split))
        return sum(len(range(max(a[1], b[1]), min(a[2], b[2]))) for a, b in pairs if a[0] == b[0])

    def _spans(self, split: str) -> list[tuple[str, int, int]]:
        """The contiguous parts of a split, each as (split that it is cut from, start, end)."""
        import tensorflow_datasets as tfds

        # ImageNet's minival is the beginning of its train.
        names = {"minival": "train"} if self._name.partition(":")[0] == "imagenet2012" else {}
        spans = []
        with contextlib.suppress(ValueError):  # This copy of the data set may lack the split.
            for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(self._splits):
                name, size = part.splitname, self._splits[part.splitname].num_examples
                span = slice(part.from_, part.to).indices(size)[:2]
                spans.append((names.get(name, name), *span))
        return spans

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        image, label = _find(record, self._image), np.asarray(_find(record, self._label), np.int32)
        if isinstance(image, np.ndarray) and image.shape[2] == 1:
            image = np.repeat(image, 3, 2)
        if not label.ndim:
            return {"image": image, "label": int(label)}
        if len(label) > MOST_LABELS:
            raise ValueError(f"it has {len(label)} labels; at most {MOST_LABELS} are possible")
        padding = (0, MOST_LABELS - len(label))
        return {"image": image, "label": np.pad(label, padding, constant_values=-1)}

    def describe(self, index: int) -> str:
        return f"record {index} of {self._name}/{self._split}"


def _find(tree: Any, key: str) -> Any:
    """The entry of a nested dict, such as a data set's features, or None if there is none."""
    if key in tree:
        return tree[key]
    first, _, rest = key.partition("/")
    return _find(tree[first], rest) if first in tree and hasattr(tree[first], "keys") else None


def _label_names(
    features: Any, name: str, image: str, label: str, count: int | None
) -> tuple[str, ...]:
    """The names of the classes; raises UserError if `label` is not a class or a set of classes."""
    found = _find(features, label)
    found = getattr(found, "feature", found)
    if hasattr(found, "names"):
        return tuple(found.names)
    is_number = getattr(found, "shape", None) == () and np.issubdtype(found.np_dtype, np.integer)
    if is_number and count:
        return tuple(map(str, range(count)))
    if is_number:
        raise UserError(
            f"{label!r} of data set {name!r} is an integer without names of classes; give the "
            "number of classes, as in --config.data.label_count=10 for labels from 0 to 9"
        )
    raise UserError(
        f"data set {name!r} has the features {', '.join(features)}; it needs {image!r}, and a "
        f"{label!r} (config.data.label) that is a class or a sequence of classes"
    )


def _image_decoders(features: Any, name: str, image: str) -> Any:
    """The `decoders` that keep an image encoded; raises UserError if `image` is not an image."""
    import tensorflow_datasets as tfds

    found = _find(features, image)
    if isinstance(found, tfds.features.Image):
        nested = tfds.decode.SkipDecoding()
        for part in reversed([image] if image in features else image.split("/")):
            nested = {part: nested}
        return nested
    shape = getattr(found, "shape", None)
    is_text = shape == () and found.np_dtype in (object, str, bytes)
    is_tensor = isinstance(shape, tuple) and len(shape) == 3
    if is_text or (is_tensor and shape[2] in (1, 3) and found.np_dtype == np.uint8):
        return None
    kind = f"{type(found).__name__} {shape} of {found.np_dtype}" if found is not None else "missing"
    raise UserError(
        f"data set {name!r} has the features {', '.join(features)}; {image!r} is {kind}, but must "
        "be an Image, encoded bytes, or a Tensor uint8 [h, w, 3] (config.data.image)"
    )


def digits_source(name: str, data_dir: str | None, split: str) -> Source:
    """A data set of scikit-learn's digits; see effnet_jax/data/digits.py."""
    if data_dir:
        raise UserError(
            f"config.data.data_dir={data_dir} does not apply to the digits; leave it out"
        )
    from effnet_jax.data.digits import ClutteredDigits, DigitPairs, Digits

    kinds = {"digits": Digits, "cluttered_digits": ClutteredDigits, "digit_pairs": DigitPairs}
    return kinds[check_choice("config.data.name", name, kinds)](split)


def open_source(config: ConfigDict, split: str) -> Source:
    """Opens a split of the data set that `config.data` names; raises UserError if it is missing."""
    if config.synthetic:
        return Synthetic(1_281_167 if split == config.train_split else 1_000)  # As ImageNet.
    kinds = ("tfds", "folder", "digits", "split_files", "parquet", "webdataset")
    kind = check_choice("config.data.source", config.source, kinds)
    if kind == "folder":
        from effnet_jax.data import folders

        source = folders.folder_source(config, split)
    elif kind == "split_files":
        from effnet_jax.data import split_files

        source = split_files.open_split(config, split)
    elif kind == "parquet":
        from effnet_jax.data import parquet

        source = parquet.open_split(config, split)
    elif kind == "webdataset":
        from effnet_jax.data import webdataset

        source = webdataset.open_split(config, split)
    elif kind == "digits":
        source = digits_source(config.name, config.data_dir, split)
    else:
        keys = config.label, config.image, config.label_count
        source = TfdsSource(config.name, config.data_dir, split, *keys)
    if not len(source):
        raise UserError(f"split {split!r} of {config.source} {config.name!r} is empty")
    return source


def eval_split(data: ConfigDict, own: str | None) -> str:
    """The split to evaluate on. Images are held out only if the folder is a run's `own`.

    In another folder it is EVAL_SPLIT or val if one of these exists, else ".", the folder itself.
    """
    if data.source != "folder" or not data.data_dir:
        return data.eval_split
    root = pathlib.Path(data.data_dir).expanduser().resolve()
    if own and root == pathlib.Path(own).expanduser().resolve():
        return data.eval_split
    return next((split for split in (data.eval_split, "val") if (root / split).is_dir()), ".")


def count_trained_on(
    source: Source, data: ConfigDict, training: ConfigDict, trained: Source | None = None
) -> int:
    """The number of records of an evaluation split that are also in `training.train_split`.

    `source` is the opened `data.eval_split`, and `trained` the opened training split. Image files
    are compared by content; records in one file, and splits of one TFDS data set or of the digits,
    by position.
    """
    if hasattr(source, "count_shared") and isinstance(trained, type(source)):
        return source.count_shared(trained)
    # A name may have its version, as in "imagenet2012:5.1.0".
    one, other = ((each.source, each.name.partition(":")[0]) for each in (data, training))
    return source.shared(training.train_split) if one == other else 0


def fingerprint(source: Source, most: int = 32) -> str:
    """A text that identifies a data set by its classes, size and `most` evenly spaced records."""
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for index in np.unique(np.linspace(0, len(source) - 1, most, dtype=int)).tolist():
        record = source[index]
        digest.update(bytes(record["image"]) + np.asarray(record["label"]).tobytes())
    return f"{len(source)} records {digest.hexdigest()[:16]}"


def identity(source: Source) -> str:
    """A text that distinguishes splits of one name: their size, and a digest of their classes.

    For data that its name doesn't identify, the digest also covers some of the images.
    """
    while isinstance(source, Relabeled):
        source = source._records
    with contextlib.suppress(OSError):  # Damaged files are reported elsewhere.
        return fingerprint(source, 32 if source.by_content else 0)
    return fingerprint(source, 0)


class Relabeled(Source):
    """A source whose labels are positions in a longer list of classes."""

    def __init__(self, source: Source, classes: tuple[str, ...]):
        super().__init__(classes, source)
        self.describe = source.describe
        labels = {name: label for label, name in enumerate(classes)}
        self._labels = np.array([labels[name] for name in source.classes], np.int32)

    def summary(self) -> str:
        return self._records.summary()

    def __getitem__(self, index: int) -> Record:
        record = self._records[index]
        label = np.asarray(record["label"])
        if label.max() >= len(self._labels):
            raise ValueError(f"label {label} is out of range of {len(self._labels)} classes")
        label = np.where(label < 0, label, self._labels[label])
        return {"image": record["image"], "label": label if label.ndim else int(label)}


def with_classes(
    source: Source, classes: tuple[str, ...], split: str, say: Callable[[str], None] = print
) -> Source:
    """A source with the labels of a network's outputs, `classes`, which are matched by name.

    Reports by `say` if the data has only some of the classes. Raises UserError if it has others, or
    if two classes have the same name.
    """
    if source.classes == classes:
        return source
    where = name_split(split)
    for whose, names in ((where, source.classes), ("the network", classes)):
        counts = collections.Counter(names)
        if twice := [name for name in set(source.classes) if counts[name] > 1]:
            raise UserError(
                f"{whose} has several classes of one name: {', '.join(sorted(twice)[:5])}; labels "
                "can't be matched by name. Give each class its own name (the network's: --classes)"
            )
    if unknown := sorted(set(source.classes) - set(classes)):
        raise UserError(
            f"{where} has {len(unknown)} classes that are not among the network's {len(classes)}: "
            f"{', '.join(unknown[:5])}. The network's are {', '.join(classes[:3])} and so on; name "
            "them with --classes if the weight file doesn't"
        )
    say(f"{where} has {len(source.classes)} of the network's {len(classes)} classes")
    return Relabeled(source, classes)


def name_split(split: str) -> str:
    """The name of a split for messages; "." is a folder of classes without splits."""
    return "the data" if split == "." else f"split {split!r}"


def difference(found: Sequence[str], expected: Sequence[str], one: str, other: str) -> str:
    """Lists what `one`, with the classes `found`, and `other`, with those `expected`, lack."""
    new, old = set(found), set(expected)
    sides = ((one, old - new), (other, new - old))
    lacking = [f"{where} lacks {first_few(names)}" for where, names in sides if names]
    return "; ".join(lacking) or "the same names in another order"


def check_classes(found: tuple[str, ...], expected: tuple[str, ...], split: str) -> None:
    """Raises UserError if the classes of an evaluation split differ from those of training.

    Labels are positions in the sorted class names, so one missing folder would shift them all.
    """
    if found != expected:
        raise UserError(
            f"split {split!r} has {len(found)} classes and training has {len(expected)}: "
            f"{difference(found, expected, f'split {split!r}', 'training')}"
        )
