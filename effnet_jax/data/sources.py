"""Data sets as random access to encoded images and their labels.

A record is {"image": bytes or uint8 [h, w, 3], "label": int}. Where an image has a set of labels,
`label` is int32 [MOST_LABELS], padded with -1.
"""

import collections
import contextlib
import filecmp
import glob
import hashlib
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import simplejpeg
from ml_collections import ConfigDict

from effnet_jax.data import imagenet_names
from effnet_jax.errors import UserError, check_choice
from effnet_jax.run import files

MOST_LABELS = 16  # Of one image; ImageNet ReaL has at most 9.
IMBALANCE = 10  # Times the images of the smallest class that the largest may have unreported.
COMPARED = 100_000  # Files whose sizes are read to find copies; of more, those of equal names.
Record = dict[str, bytes | int | np.ndarray]


class Source:
    """A split of a data set: `classes`, names by label, and random access to its records."""

    by_content = False  # Whether `identity` covers some images: the data's name says little.

    def __init__(self, classes: tuple[str, ...], records: Sequence):
        self.classes, self._records = classes, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Names a record for a message."""
        raise NotImplementedError

    def shared(self, split: str) -> int:
        """The number of these records that another split of the same data set has as well."""
        return 0

    def summary(self) -> str:
        """A line for the start of a run: how many images and classes, and what is known of them."""
        return f"{len(self):,} images, {self._list_classes()}"

    def warnings(self) -> list[str]:
        """Lines about what may harm training on these images."""
        return []

    def _list_classes(self) -> str:
        first = ", ".join(self.classes[:3]) + ", ..." * (len(self.classes) > 3)
        return f"{len(self.classes):,} classes: {first}"


def _missing(name: str, data_dir: str) -> UserError:
    """The error for a data set that is not in `data_dir`, with the command that prepares it."""
    dataset = name.partition(":")[0]
    # A preparation has a lock, and its command, in DATA_DIR/NAME/VERSION.incomplete.
    for state in pathlib.Path(data_dir, dataset).glob("*.incomplete/state.json"):
        with files.Lock(state.with_name("lock"), "preparation", "choose another data set"):
            command = files.read_json(state)["command"]
        half = f"data set {name!r} is half prepared in {state.parent}"
        return UserError(f"{half}. Go on with:\n  {command}")
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
    where = f"it isn't in {data_dir}" if os.path.isdir(data_dir) else f"no directory {data_dir}"
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
    """A reader of one ArrayRecord file, for random access."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, options="readahead_buffer_size:0")


def check_files(instructions: list[Any]) -> None:
    """Raises UserError for a file of a split that is missing, or truncated: its index is last."""
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
    the number of classes of a label that is an integer without names.
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
        """The parts of a split: the split that each is cut from, its first record, and its end."""
        import tensorflow_datasets as tfds

        # ImageNet's minival is the first of its train.
        names = {"minival": "train"} if self._name.partition(":")[0] == "imagenet2012" else {}
        spans = []
        with contextlib.suppress(ValueError):  # Another copy of the data set may have the split.
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
    """The entry of a nested dict, such as the features of a data set; None if there is none."""
    if key in tree:
        return tree[key]
    first, _, rest = key.partition("/")
    return _find(tree[first], rest) if first in tree and hasattr(tree[first], "keys") else None


def _label_names(
    features: Any, name: str, image: str, label: str, count: int | None
) -> tuple[str, ...]:
    """The names of the classes; raises UserError where `label` is no class or set of classes."""
    found = _find(features, label)
    found = getattr(found, "feature", found)
    if hasattr(found, "names"):
        return tuple(found.names)
    is_number = getattr(found, "shape", None) == () and np.issubdtype(found.np_dtype, np.integer)
    if is_number and count:
        return tuple(map(str, range(count)))
    if is_number:
        raise UserError(
            f"{label!r} of data set {name!r} is an integer without names of classes; give their "
            "number, as --config.data.label_count=10 for labels from 0 to 9"
        )
    raise UserError(
        f"data set {name!r} has the features {', '.join(features)}; needed are {image!r} "
        f"and a class {label!r} (config.data.label), or a sequence of them"
    )


def _image_decoders(features: Any, name: str, image: str) -> Any:
    """The `decoders` that keep an image encoded; raises UserError where `image` is no image."""
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
        f"data set {name!r} has the features {', '.join(features)}; {image!r} is {kind}, and an "
        "image is needed (config.data.image): an Image, encoded bytes, or a Tensor uint8 [h, w, 3]"
    )


def digits_source(name: str, data_dir: str | None, split: str) -> Source:
    """A data set made of scikit-learn's digits: see effnet_jax/data/digits.py."""
    if data_dir:
        raise UserError(
            f"config.data.data_dir={data_dir}: the digits are in no folder; leave it out"
        )
    from effnet_jax.data.digits import ClutteredDigits, DigitPairs, Digits

    kinds = {"digits": Digits, "cluttered_digits": ClutteredDigits, "digit_pairs": DigitPairs}
    return kinds[check_choice("config.data.name", name, kinds)](split)


class FolderSource(Source):
    """Image files, given by path and label (see Record): some of the `total` in a `place`.

    `left_out` counts the files there that are not read, by their ending.
    """

    by_content = True

    def __init__(
        self,
        classes: tuple[str, ...],
        records: Sequence[tuple[str, int]],
        place: pathlib.Path = pathlib.Path(),
        left_out: collections.Counter | None = None,
        total: int | None = None,
    ):
        super().__init__(classes, records)
        self._place, self._total = place, total or len(records)
        self._left_out = left_out or collections.Counter()

    def __getitem__(self, index: int) -> Record:
        path, label = self._records[index]
        with open(path, "rb", buffering=0) as file:
            return {"image": file.read(), "label": label}

    def describe(self, index: int) -> str:
        # Names of files may be in another encoding than that of messages and pages.
        return os.fsencode(self._records[index][0]).decode("utf-8", "backslashreplace")

    @property
    def is_held_out(self) -> bool:
        """Whether these are some of the images there: a folder or a list has others beside them."""
        return len(self) < self._total

    def count_shared(self, other: "FolderSource") -> int:
        """The number of these images that `other` has as well: the same file, or a copy of it."""
        own, theirs = ([path for path, _ in each._records] for each in (self, other))
        if len(theirs) > COMPARED:
            names = set(map(os.path.basename, own))
            theirs = [path for path in theirs if os.path.basename(path) in names]
        sizes = set(map(_size, own)) - {-1}
        alike = collections.defaultdict(list)
        for path in theirs:
            if _size(path) in sizes:
                alike[_peek(path)].append(path)
        return sum(
            any(filecmp.cmp(path, each, shallow=False) for each in alike.get(_peek(path), ()))
            for path in own
        )

    def _counts(self) -> np.ndarray:
        """Images by class."""
        return np.bincount([label for _, label in self._records], minlength=len(self.classes))

    def warnings(self) -> list[str]:
        lines = alike(self.classes, "put their images into one folder")
        if shared := self._shared_folders():
            lines.append(
                f"warning: all classes have the same folders in them: {_first_of(shared)}. If "
                "those are the classes, as in folds or years, move them up: DIR/CLASS/*.jpg"
            )
        if masks := self._masks():
            lines.append(
                f"warning: {len(masks):,} images are masks of others by their names, such as "
                f"{masks[0]}; they count as images of their class: move them elsewhere"
            )
        return lines + uneven(self.classes, self._counts())

    def _shared_folders(self) -> set[str]:
        """The folders in those of the classes, where all have the same ones and images in them."""
        inner = collections.defaultdict(set)
        for path, label in self._records:
            folders = path.removeprefix(f"{self._place}{os.sep}").split(os.sep)[1:-1]
            if not folders:
                return set()
            inner[label].add(folders[0])
        first = inner[0]
        return first if len(first) > 1 and all(each == first for each in inner.values()) else set()

    def _masks(self) -> list[str]:
        """The images next to another whose name they have, and "mask" or the like after it."""
        masks = {}
        for path, _ in self._records:
            if match := MASK_FILE.fullmatch(os.path.splitext(path)[0]):
                masks[path] = match[1]
        images = set(masks.values())
        there = images.intersection(os.path.splitext(path)[0] for path, _ in self._records)
        return [path for path, image in masks.items() if image in there]

    def summary(self) -> str:
        line = f"{self._place}: {len(self):,} of {self._total:,} images, {self._list_classes()}"
        if np.ndim(self._records[0][1]):
            return f"{line}; sets of labels"
        counted = count_by_class(self.classes, self._counts())
        return f"{line}{counted}{list_endings(self._left_out)}"


def alike(classes: Sequence[str], remedy: str) -> list[str]:
    """Lines about classes whose names read alike, and what is to be done if they are one."""
    names = collections.defaultdict(list)
    for name in classes:
        plain = re.sub(r"[\s_-]+", " ", name.casefold()).strip()
        names[COPY.sub("", plain) or plain].append(repr(name))
    return [
        f"warning: the names of the classes {' and '.join(each)} differ in capitals, spaces or the "
        f"ending of a copy alone; if they are one class, {remedy}"
        for each in [each for each in names.values() if len(each) > 1][:3]
    ]


def uneven(classes: Sequence[str], counts: np.ndarray) -> list[str]:
    """A line about classes of which one has many times the images of another."""
    least, most = counts.min(), counts.max()
    if most <= IMBALANCE * least:
        return []
    return [
        f"warning: class {classes[counts.argmax()]!r} has {most:,} images, more than "
        f"{IMBALANCE} times the {least:,} of {classes[counts.argmin()]!r}. Top-1 follows the large "
        "classes; the metric mean_per_class counts all the same, and can be "
        "config.checkpoint.best_metric"
    ]


def count_by_class(classes: Sequence[str], counts: np.ndarray) -> str:
    """The fewest and the most images of a class, for a summary."""
    ends = dict.fromkeys((counts.argmin(), counts.argmax()))  # One, where all have as many.
    most = " to ".join(f"{counts[at]:,} ({classes[at]})" for at in ends)
    return f"; images per class: {most if len(ends) > 1 else f'{counts[0]:,} each'}"


# Endings, in lower case, of the images that `decode` reads.
IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
# What systems leave in people's folders, in lower case, beside names that begin with a dot.
SYSTEM = {
    *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"),
    *("desktop.ini", "system volume information", "thumbs.db"),
}
# Names of folders that are splits of a data set, and not classes; or that hold no photographs.
SPLIT = re.compile(
    r"((seg|x)_)?(train|test|val|valid|validation|pred|dev|development|eval|evaluation|holdout)"
    r"(ing)?([ _-]?(set|data|images|\d+))?",
    re.I,
)
MASKS = re.compile(
    r"(masks?|labels?|annot(ation)?s?|segmentations?|ground[ _-]?truths?|gts?|depth)", re.I
)
PICTURES = re.compile(r"images?|imgs?|rgb", re.I)
# Ends of the names of copies that systems make, and of masks next to the images that they are of.
COPY = re.compile(r"( copy)?( ?\(\d+\))?$")
MASK_FILE = re.compile(r"(.+)[ _-](mask|seg|segmentation|gt)([ _-]\d+)?", re.I)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is the system's, or hidden, by its name."""
    return name.startswith(".") or name.lower() in SYSTEM


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(IMAGES) and not is_hidden(name)


def list_images(arguments: Sequence[str]) -> list[str]:
    """The paths that arguments stand for, in their order; reports how many files are left out.

    Raises UserError for a folder without images or with a link to a folder that is read already,
    and a pattern that no image matches.
    """
    paths = []
    for argument in arguments:
        is_folder = os.path.isdir(argument)
        pattern = os.path.join(glob.escape(argument), "**") if is_folder else argument
        if not glob.has_magic(pattern) or os.path.isfile(argument) or "://" in argument:
            paths.append(argument)
            continue
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        inner = argument if is_folder else "."  # Below it, what is the system's is passed over.
        parts = {path: os.path.relpath(path, inner).split(os.sep) for path in found}
        images = sorted(
            path
            for path, names in parts.items()
            if is_image(names[-1]) and not any(is_hidden(name) for name in names if name != "..")
        )
        if not images:
            raise UserError(f"no image in {argument} (files: {len(found)})")
        places = {}
        for place in dict.fromkeys(map(os.path.dirname, images)):
            first = places.setdefault(os.path.realpath(place), place)
            if first != place:  # A link back is followed forty times.
                raise UserError(f"{place} is {first} by a link, and read already; remove the link")
        if others := len(found) - len(images):
            print(f"{argument}: {others} of {len(found)} files are no images", file=sys.stderr)
        paths += images
    return paths


def list_endings(left_out: collections.Counter) -> str:
    """The files that are left out, by their ending, for a summary or a message."""
    listed = ", ".join(f"{count:,} {ending}" for ending, count in left_out.most_common(5))
    loose = any(ending.partition(" ")[0] in IMAGES and " " in ending for ending in left_out)
    remedy = "; move each image that is in no class folder into that of its class" * loose
    return f"; files left out: {left_out.total():,} ({listed}){remedy}" if left_out else ""


def _list_images(
    folder: pathlib.Path, left_out: collections.Counter, others: set[str]
) -> list[str]:
    """The image files of a class, at any depth, sorted; counts other files by their ending.

    `others` are the other classes: in a folder called like one the images may be of either.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"can't read {error.filename}: {error.strerror}")

    found, seen = [], set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(root)) in seen:
            raise UserError(f"{root} links to {real}, which is read already; remove the link")
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        images = [name for name in names if is_image(name)]
        inner = pathlib.Path(root).name
        is_odd = SPLIT.fullmatch(inner) or MASKS.fullmatch(inner) or inner in others
        if images and root != str(folder) and is_odd:
            raise UserError(
                f"{root} has images, and its name is none of a part of the class {folder.name!r}; "
                "move it out of the class, or rename it if they are images of the class"
            )
        rest = set(names).difference(images, filter(is_hidden, names))
        left_out.update(os.path.splitext(name)[1].lower() or "without ending" for name in rest)
        found += [os.path.join(root, name) for name in images]
    return sorted(found)


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))


def list_classes(
    folder: pathlib.Path,
    left_out: collections.Counter | None = None,
    other: pathlib.Path | None = None,
) -> dict[str, list[str]]:
    """The image files, at any depth, of every class folder in `folder`, sorted.

    Names of classes are in Unicode's composed form, NFC: file systems change it. Adds the files
    that are left out to `left_out`, by ending; hidden ones don't count. `other` is the folder of
    another split: where `folder` has too few classes, the message names those that it lacks.
    """
    left_out = collections.Counter() if left_out is None else left_out
    entries = _entries(folder)
    if broken := [entry for entry in entries if entry.is_symlink() and not entry.exists()]:
        raise UserError(f"{broken[0]} links to nothing; mount what it links to, or remove the link")
    folders = [entry for entry in entries if entry.is_dir()]
    _check_folders(folder, folders)
    by_name = {unicodedata.normalize("NFC", entry.name): entry for entry in folders}
    if twins := [str(entry) for entry in folders if entry not in by_name.values()]:
        raise UserError(
            f"{folder} has two class folders whose name reads {ascii(twins[0])[1:-1]}, in two "
            "forms of Unicode (NFC and NFD); put their images into one folder"
        )
    _check_names(folder, list(by_name))
    left_out.update(
        f"{entry.suffix.lower() or 'without ending'} in no class folder"
        for entry in entries
        if not entry.is_dir()
    )
    if len(folders) < 2:
        _refuse_few(folder, list(by_name), other)
    found = {
        name: _list_images(by_name[name], left_out, {*by_name} - {name}) for name in sorted(by_name)
    }
    if empty := [name for name, paths in found.items() if not paths]:
        raise UserError(
            f"no image in {folder / empty[0]} and {len(empty) - 1} other class folders; remove the "
            f"empty folder or add images ({', '.join(IMAGES)}){list_endings(left_out)}"
        )
    imagenet_names.check_names((name, path) for name, paths in found.items() for path in paths)
    return found


def _refuse_few(folder: pathlib.Path, names: list[str], other: pathlib.Path | None) -> NoReturn:
    """Raises the UserError for a folder with fewer than two classes, `names`."""
    found = f"1 class folder, {names[0]}," if names else "no class folder"
    remedy = "DIR/CLASS/*.jpg, or DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg"
    there = [entry.name for entry in _entries(other) if entry.is_dir()] if other else []
    if missing := [name for name in there if name not in names]:
        remedy = f"add {_first_of(missing)}, which {other} has"
    raise UserError(f"{folder} has {found} and at least 2 are needed: {remedy}")


def _check_folders(folder: pathlib.Path, folders: list[pathlib.Path]) -> None:
    """Raises UserError for a name of a class in no Unicode, and for two names of one folder."""
    places = {}
    for entry in folders:
        try:
            entry.name.encode()
        except UnicodeError:
            raise UserError(
                f"{ascii(str(folder))[1:-1]} has a class folder with the name "
                f"{os.fsencode(entry.name)!r}, which isn't UTF-8; rename it"
            ) from None
        first = places.setdefault(os.path.realpath(entry), entry)
        if first != entry:
            raise UserError(f"{first} and {entry} are one folder; remove the link of a class")


def _check_names(folder: pathlib.Path, names: list[str]) -> None:
    """Raises UserError for folders that are splits, or images and their masks, and not classes."""
    odd = [name for name in names if SPLIT.fullmatch(name)]
    if all(name in odd or MASKS.fullmatch(name) or PICTURES.fullmatch(name) for name in names):
        odd = names
    is_vehicle = len(odd) == 1 < len(names) and odd[0].lower() == "train"
    if not odd or (is_vehicle and not any(each.is_dir() for each in (folder / odd[0]).iterdir())):
        return
    train = next((name for name in odd if "train" in name.lower()), "NAME")
    others = sorted({*odd} - {train}, key=lambda name: "val" not in name.lower())
    raise UserError(
        f"{folder} has {', '.join(odd[:5])}, which are names of parts of a data set and not of "
        "classes. Name the folders that have class folders: train.py takes "
        f"--config.data.train_split={train} --config.data.eval_split={(*others, 'NAME')[0]}, and "
        f"eval.py --data_dir={folder}/NAME. If they are classes, rename them"
    )


def folder_source(config: ConfigDict, split: str) -> FolderSource:
    """A split of the image folder `config.data_dir`: its split/CLASS/... if that exists.

    Otherwise the classes lie in the folder itself, and the fraction `config.holdout` of each class,
    at least one file, is the evaluation split.
    """
    if not config.data_dir:
        raise UserError("no image folder given; add --config.data.data_dir=DIR")
    root = pathlib.Path(config.data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"no image folder {root} (config.data.data_dir)")
    place, left_out = root, collections.Counter()
    if (root / split).is_dir():
        place = root / split
        beside = root / (config.eval_split if split == config.train_split else config.train_split)
        by_class = list_classes(place, left_out, beside if beside.is_dir() else None)
    elif (root / config.train_split).is_dir() or (root / config.eval_split).is_dir():
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
        raise UserError(
            f"{root} has no folder {split!r}; give --config.data.train_split and "
            f"--config.data.eval_split out of: {', '.join(folders)}"
        )
    else:
        by_class = list_classes(root, left_out)
    total = sum(map(len, by_class.values()))
    if place == root and split != ".":
        by_class = {
            name: hold_out(root / name, paths, config.holdout, split == config.eval_split)
            for name, paths in by_class.items()
        }
    paths = [(path, label) for label, each in enumerate(by_class.values()) for path in each]
    return FolderSource(tuple(by_class), paths, place, left_out, total)


def eval_split(data: ConfigDict, own: str | None) -> str:
    """The split to evaluate on: of a folder that isn't a run's `own`, nothing is held out.

    It is DIR/EVAL_SPLIT or DIR/val if there is one of these folders, else ".", the classes in DIR.
    """
    if data.source != "folder" or not data.data_dir:
        return data.eval_split
    root = pathlib.Path(data.data_dir).expanduser().resolve()
    if own and root == pathlib.Path(own).expanduser().resolve():
        return data.eval_split
    return next((split for split in (data.eval_split, "val") if (root / split).is_dir()), ".")


def hold_out(
    folder: pathlib.Path | str, paths: list[str], share: float, evaluation: bool
) -> list[str]:
    """The files of a class that are held out for evaluation, evenly spaced, or the others."""
    if len(paths) < 2:
        raise UserError(
            f"{folder} has a single image, which can't be both trained on and held out for "
            "evaluation; add images, or make train/ and val/ folders"
        )
    # How many of the first 0, 1, 2, ... files are held out.
    counts = np.floor(np.arange(len(paths) + 1) * share + 1e-9)
    counts[-1] = max(counts[-1], 1)
    return [path for path, step in zip(paths, np.diff(counts), strict=True) if step == evaluation]


class Synthetic(Source):
    """`count` records of 1000 classes, all of the same grey image."""

    def __init__(self, count: int):
        super().__init__(tuple(f"class{label:03d}" for label in range(1000)), range(count))
        grey = np.full((375, 500, 3), 128, np.uint8)
        self._image = simplejpeg.encode_jpeg(grey, colorsubsampling="420")

    def __getitem__(self, index: int) -> Record:
        return {"image": self._image, "label": index % len(self.classes)}

    def describe(self, index: int) -> str:
        return f"synthetic record {index}"


def open_source(config: ConfigDict, split: str) -> Source:
    """A split of the data set that `config.data` names; raises UserError if it is missing."""
    if config.synthetic:
        return Synthetic(1_281_167 if split == config.train_split else 1_000)  # As ImageNet.
    kinds = ("tfds", "folder", "digits", "split_files", "parquet", "webdataset")
    kind = check_choice("config.data.source", config.source, kinds)
    if kind == "folder":
        source = folder_source(config, split)
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


def count_trained_on(
    source: Source, data: ConfigDict, training: ConfigDict, trained: Source | None = None
) -> int:
    """The number of records of an evaluation split that `training.train_split` has as well.

    `source` is `data.eval_split`, and `trained` the training split, as opened. Image files are
    compared by content; records of one file, splits of one data set of TFDS, or of digits, by
    position.
    """
    if hasattr(source, "count_shared") and isinstance(trained, type(source)):
        return source.count_shared(trained)
    # A name may have its version, as in "imagenet2012:5.1.0".
    one, other = ((each.source, each.name.partition(":")[0]) for each in (data, training))
    return source.shared(training.train_split) if one == other else 0


def _size(path: str) -> int:
    """A file's size; -1 where it is missing, which is reported elsewhere."""
    with contextlib.suppress(OSError):
        return os.path.getsize(path)
    return -1


def _peek(path: str) -> tuple[int, bytes]:
    """The size of a file and some of its bytes, which tell most files apart."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(_size(path) // 2)
        return _size(path), hashlib.sha256(file.read(4096)).digest()
    return -1, path.encode(errors="surrogateescape")


def fingerprint(source: Source, most: int = 32) -> str:
    """Text that identifies a data set by its classes, size and `most` evenly spaced records."""
    digest = hashlib.sha256("\n".join(source.classes).encode())
    for index in np.unique(np.linspace(0, len(source) - 1, most, dtype=int)).tolist():
        record = source[index]
        digest.update(bytes(record["image"]) + np.asarray(record["label"]).tobytes())
    return f"{len(source)} records {digest.hexdigest()[:16]}"


class Relabeled(Source):
    """A source with the labels that its classes have in a longer list of classes."""

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
            raise ValueError(f"label {label} is out of range, there are {len(self._labels)}")
        label = np.where(label < 0, label, self._labels[label])
        return {"image": record["image"], "label": label if label.ndim else int(label)}


def with_classes(
    source: Source, classes: tuple[str, ...], split: str, say: Callable[[str], None] = print
) -> Source:
    """A source with the labels of a network's outputs, `classes`, which are matched by name.

    Says so if the data has only some of the classes; raises UserError if it has others, or if a
    name stands for two of them.
    """
    if source.classes == classes:
        return source
    where = name_split(split)
    for whose, names in ((where, source.classes), ("the network", classes)):
        counts = collections.Counter(names)
        if twice := [name for name in set(source.classes) if counts[name] > 1]:
            raise UserError(
                f"{whose} has several classes of one name: {', '.join(sorted(twice)[:5])}; labels "
                "can't be matched by name. Give each class a name of its own (network: --classes)"
            )
    if unknown := sorted(set(source.classes) - set(classes)):
        raise UserError(
            f"{where} has {len(unknown)} classes that are none of the network's "
            f"{len(classes)}: {', '.join(unknown[:5])}. Those are {', '.join(classes[:3])} and so "
            "on; name them with --classes if the weight file doesn't"
        )
    say(f"{where} has {len(source.classes)} of the network's {len(classes)} classes")
    return Relabeled(source, classes)


def name_split(split: str) -> str:
    """A split for a message; "." is a folder of classes without splits."""
    return "the data" if split == "." else f"split {split!r}"


def _first_of(names: Iterable[str]) -> str:
    """The first five names, sorted, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def difference(found: Sequence[str], expected: Sequence[str], one: str, other: str) -> str:
    """The classes that `one` lacks, which has those `found`, and those that the `other` lacks."""
    new, old = set(found), set(expected)
    sides = ((one, old - new), (other, new - old))
    lacking = [f"{where} lacks {_first_of(names)}" for where, names in sides if names]
    return "; ".join(lacking) or "the same names in another order"


def check_classes(found: tuple[str, ...], expected: tuple[str, ...], split: str) -> None:
    """Raises UserError if the classes of an evaluation split are not those of training.

    Labels are positions in the sorted class names, so one missing folder would shift them all.
    """
    if found != expected:
        raise UserError(
            f"split {split!r} has {len(found)} classes and training has {len(expected)}: "
            f"{difference(found, expected, f'split {split!r}', 'training')}"
        )


def identity(source: Source) -> str:
    """Tells a split from others of one name: its images, and a digest of the names of its classes.

    The digest of files, whose name says little, also covers some of the images.
    """
    while isinstance(source, Relabeled):
        source = source._records
    with contextlib.suppress(OSError):  # Damaged files are reported elsewhere.
        return fingerprint(source, 32 if source.by_content else 0)
    return fingerprint(source, 0)
