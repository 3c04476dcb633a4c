"""Where records come from: random access to encoded images and their labels.

A source has `classes` (names by label), `len()`, `source[i] -> {"image": bytes, "label": int}` and
`describe(i)`, which names a record for a message. Where images have sets of labels, `label` is
int32 [MOST_LABELS], filled up with -1.
"""

import contextlib
import hashlib
import io
import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from effnet_jax.errors import UserError, check_choice

EXTENSIONS = (".jpg", ".jpeg", ".png")
MOST_LABELS = 16  # Of an image with a set of them; ImageNet ReaL has 9 at most.


class Source(Protocol):
    """Random access to one split of a data set."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, bytes | int | np.ndarray]: ...

    def describe(self, index: int) -> str: ...


def cache_dir() -> pathlib.Path:
    """Where prepared digits and compiled programs are kept: $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "effnet_jax"


def _is_imagenet(name: str) -> bool:
    return name.partition(":")[0] == "imagenet2012"


def _how_to_prepare(name: str, data_dir: str, copy: str | None = None) -> str:
    """The command that makes a data set in `data_dir`, out of a copy in another format if given."""
    if _is_imagenet(name):
        where = "" if copy else ", where DIR holds the official tars or the images in folders"
        arguments = f"--from={copy or 'DIR'} --data_dir={data_dir}"
        return f"Run{where}:\n  python -m effnet_jax.tools.prepare_imagenet {arguments}"
    if copy:
        return (
            "In an environment with TensorFlow, run:\n  tfds convert_format "
            f"--out_file_format=array_record --dataset_version_dir={copy} --out_dir={data_dir}"
        )
    return (
        "TFDS needs TensorFlow to prepare it, this program does not; in an environment with both, "
        f"run:\n  tfds build {name} --data_dir={data_dir} --file_format=array_record"
    )


def _check_files(instructions: list[Any]) -> None:
    """Raises UserError for a file of a split that isn't there, or isn't whole.

    An ArrayRecord file counts its records at its end, so a half copied one is told by that, and
    not in the middle of an epoch.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    for instruction in instructions:
        path, expected = str(instruction.filename), instruction.examples_in_shard
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing; copy or prepare the data set again")
        try:
            reader = ArrayRecordReader(path, options="readahead_buffer_size:0")
            records = reader.num_records()
            reader.close()
        except RuntimeError:
            records = 0
        if records != expected:
            raise UserError(
                f"{path} has {os.path.getsize(path):,} bytes, and {records} of its {expected} "
                "records can be read; copy or prepare the data set again"
            )


class TfdsSource:
    """A split of a TFDS data set that lies prepared as ArrayRecord; needs no TensorFlow."""

    def __init__(self, name: str, data_dir: str | None, split: str, label: str = "label"):
        import tensorflow_datasets as tfds

        default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        data_dir = str(pathlib.Path(data_dir or default).expanduser())
        remedy = _how_to_prepare(name, data_dir)
        if not os.path.isdir(data_dir):
            raise UserError(
                f"no directory {data_dir} (config.data.data_dir) for data set {name!r}. {remedy}"
            )
        try:
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError:
            from effnet_jax.imagenet.prepare import unfinished

            if _is_imagenet(name) and (state := unfinished(data_dir)):
                raise UserError(f"data set {name!r} {state}") from None
            raise UserError(
                f"data set {name!r} is not prepared in {data_dir} (config.data.data_dir). {remedy}"
            ) from None
        if builder.info.file_format is not tfds.core.file_adapters.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"data set {name!r} in {builder.data_dir} is stored as "
                f"{builder.info.file_format.value}, not as ArrayRecord. "
                + _how_to_prepare(name, "NEW_DIR", copy=str(builder.data_dir))
            )
        features = builder.info.features
        known = {"image", label} <= set(features)
        labels = getattr(features[label], "feature", features[label]) if known else None
        if not hasattr(labels, "names"):
            raise UserError(
                f"data set {name!r} has the features {', '.join(features)}; needed are 'image' "
                f"and a class {label!r} (config.data.label), or a sequence of them"
            )
        decoders = {"image": tfds.decode.SkipDecoding()}
        self.classes = tuple(labels.names)
        try:
            instructions = builder.info.splits[split].file_instructions
            self._records = builder.as_data_source(split, decoders=decoders)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"no split {split!r} in data set {name!r}, which has "
                f"{', '.join(sorted(builder.info.splits))} ({str(error).partition(chr(10))[0]})"
            ) from None
        _check_files(instructions)
        self._name = f"{name}/{split}"
        self._label = label

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, bytes | int | np.ndarray]:
        record = self._records[index]
        label = np.asarray(record[self._label], np.int32)
        if label.ndim:
            if len(label) > MOST_LABELS:
                raise ValueError(f"it has {len(label)} labels, and {MOST_LABELS} are the most")
            label = np.pad(label, (0, MOST_LABELS - len(label)), constant_values=-1)
        return {"image": record["image"], "label": label if label.ndim else int(label)}

    def describe(self, index: int) -> str:
        return f"record {index} of {self._name}"


def _builders() -> dict[str, Callable[..., Any]]:
    """The data sets that this package makes itself, by name; imported where one is made."""
    from effnet_jax.data.cluttered_digits import ClutteredDigits
    from effnet_jax.data.digits import Digits

    return {"digits": Digits, "cluttered_digits": ClutteredDigits}


def digits_source(name: str, data_dir: str | None, split: str) -> TfdsSource:
    """A data set made of scikit-learn's digits: "digits" or "cluttered_digits".

    From `data_dir`; by default from the cache, where it is written on first use.
    """
    check_choice("config.data.name", name, ("digits", "cluttered_digits"))
    if data_dir and not os.path.isdir(os.path.join(data_dir, name)):
        raise UserError(
            f"no {name} in {data_dir} (config.data.data_dir); leave it out, and they are made "
            f"under {cache_dir()}"
        )
    data_dir = data_dir or str(cache_dir() / "data")
    if not os.path.isdir(os.path.join(data_dir, name)):
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        # Prepared where nobody else looks and then moved, so that two runs may start at once.
        try:
            os.makedirs(data_dir, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"can't write {name} to {data_dir} ({error.strerror}); set XDG_CACHE_HOME"
            ) from None
        with tempfile.TemporaryDirectory(dir=data_dir) as private:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints lines about nothing.
                builder = _builders()[name](data_dir=private, file_format="array_record")
                builder.download_and_prepare()
            with contextlib.suppress(OSError):  # The other run was faster.
                os.rename(os.path.join(private, name), os.path.join(data_dir, name))
    return TfdsSource(name, data_dir, split)


class FolderSource:
    """Image files in one folder a class; the sorted folder names are the classes."""

    def __init__(self, classes: tuple[str, ...], files: list[tuple[str, int]]):
        self.classes = classes
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        path, label = self._files[index]
        with open(path, "rb") as file:
            return {"image": file.read(), "label": label}

    def describe(self, index: int) -> str:
        return self._files[index][0]


def list_classes(folder: pathlib.Path) -> dict[str, list[str]]:
    """The image files, at any depth, of every class folder in `folder`, sorted."""
    found = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            walk = os.walk(entry, followlinks=True)
            paths = (os.path.join(root, name) for root, _, names in walk for name in names)
            found[entry.name] = sorted(p for p in paths if p.lower().endswith(EXTENSIONS))
    if len(found) < 2:
        raise UserError(
            f"{folder} has {len(found)} class folders, and at least 2 are needed: "
            "DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg beside DIR/val/CLASS/*.jpg"
        )
    if empty := [name for name, files in found.items() if not files]:
        raise UserError(
            f"no JPEG or PNG file in {folder / empty[0]}"
            + (f" and {len(empty) - 1} other class folders" if len(empty) > 1 else "")
            + "; remove the empty folder or add images"
        )
    return found


def folder_source(
    data_dir: str | None, split: str, train_split: str, eval_split: str, holdout: float
) -> FolderSource:
    """A split of an image folder.

    `data_dir/split/CLASS/...` where that exists; otherwise the classes lie in `data_dir` itself and
    the fraction `holdout` of each class, at least one file, is held out for the evaluation split.
    """
    if not data_dir:
        raise UserError("no image folder given; add --config.data.data_dir=DIR")
    root = pathlib.Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"no image folder {root} (config.data.data_dir)")
    if (root / split).is_dir():
        by_class = list_classes(root / split)
    elif (root / train_split).is_dir() or (root / eval_split).is_dir():
        raise UserError(
            f"{root} has no folder {split!r}, but it has its sibling; give "
            f"--config.data.train_split and --config.data.eval_split. It holds: "
            f"{', '.join(sorted(entry.name for entry in root.iterdir() if entry.is_dir()))}"
        )
    else:
        by_class = list_classes(root)
        for name, files in by_class.items():
            if len(files) < 2:
                raise UserError(
                    f"{root / name} has a single image, which can't be both trained on and held "
                    "out for evaluation; add images, or make train/ and val/ folders"
                )
            # Spread evenly: file i where the running share of held out files steps up.
            shares = [math.floor((index + 1) * holdout + 1e-9) for index in range(len(files))]
            shares[-1] = max(shares[-1], 1)
            held = {
                f for f, low, high in zip(files, [0, *shares], shares, strict=False) if high > low
            }
            by_class[name] = [file for file in files if (file in held) == (split == eval_split)]
    classes = tuple(by_class)
    files = [(path, label) for label, name in enumerate(classes) for path in by_class[name]]
    return FolderSource(classes, files)


class Synthetic:
    """As many records as ImageNet has for training, or fewer, all the same grey image."""

    classes = tuple(f"class{label:03d}" for label in range(1000))

    def __init__(self, count: int):
        pixels = io.BytesIO()
        Image.new("RGB", (500, 375), (128, 128, 128)).save(pixels, "JPEG")
        self._image, self._count = pixels.getvalue(), count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        return {"image": self._image, "label": index % len(self.classes)}

    def describe(self, index: int) -> str:
        return f"synthetic record {index}"


def open_source(config: ConfigDict, split: str) -> Source:
    """The split of the data set that `config.data` names; raises UserError where it isn't there."""
    if config.synthetic:
        return Synthetic(1_281_167 if split == config.train_split else 1_000)
    kind = check_choice("config.data.source", config.source, ("tfds", "folder", "digits"))
    if kind == "tfds":
        source = TfdsSource(config.name, config.data_dir, split, config.label)
    elif kind == "digits":
        source = digits_source(config.name, config.data_dir, split)
    else:
        source = folder_source(
            config.data_dir, split, config.train_split, config.eval_split, config.holdout
        )
    if not len(source):
        raise UserError(f"split {split!r} of {config.source} {config.name!r} is empty")
    return source


def fingerprint(source: Source, most: int = 32) -> str:
    """Tells data sets apart: number of records, classes, and `most` records spread evenly."""
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for index in np.unique(np.linspace(0, len(source) - 1, most, dtype=int)).tolist():
        record = source[index]
        digest.update(record["image"] + np.asarray(record["label"]).tobytes())
    return f"{len(source)} records {digest.hexdigest()[:16]}"


class Relabeled:
    """A source with the labels of other classes, which have all of its own by name."""

    def __init__(self, source: Source, classes: tuple[str, ...]):
        self._source, self.classes = source, classes
        labels = {name: label for label, name in enumerate(classes)}
        self._labels = np.array([labels[name] for name in source.classes], np.int32)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, bytes | int | np.ndarray]:
        record = self._source[index]
        label = np.asarray(record["label"])
        if label.max() >= len(self._labels):
            raise ValueError(f"label {label} is out of range, there are {len(self._labels)}")
        label = np.where(label < 0, label, self._labels[label])
        return {"image": record["image"], "label": label if label.ndim else int(label)}

    def describe(self, index: int) -> str:
        return self._source.describe(index)


def with_classes(
    source: Source, classes: tuple[str, ...], split: str, say: Callable[[str], None] = print
) -> Source:
    """A source with the labels of a network's outputs, whose classes have those of the source.

    Args:
      source: of a split.
      classes: of the network, by output.
      split: its name.
      say: told where the data has only some of the classes.

    Raises:
      UserError: the data has a class that the network doesn't know.
    """
    if source.classes == classes:
        return source
    if unknown := sorted(set(source.classes) - set(classes)):
        raise UserError(
            f"split {split!r} has {len(unknown)} classes that are none of the network's "
            f"{len(classes)}: {', '.join(unknown[:5])}. Those are {', '.join(classes[:3])} and so "
            "on; of a file of weights that doesn't name them, --classes does"
        )
    say(f"split {split!r} has {len(source.classes)} of the network's {len(classes)} classes")
    return Relabeled(source, classes)


def check_classes(found: tuple[str, ...], expected: tuple[str, ...], split: str) -> None:
    """Raises where a split's classes are not those that the model was, or will be, trained on.

    Labels are positions in the sorted class names, so one missing folder would shift them all.
    """
    if found != expected:
        missing = sorted(set(expected) - set(found))[:5]
        added = sorted(set(found) - set(expected))[:5]
        raise UserError(
            f"split {split!r} has {len(found)} classes and training has {len(expected)}; "
            f"missing: {', '.join(missing) or 'none'}; added: {', '.join(added) or 'none'}"
        )
