"""The files of a prepared ImageNet: what is done to each image, and how they are written."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib

from effnet_jax.data import restarts
from effnet_jax.data.decode import decode_image
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import inputs
from effnet_jax.imagenet.dataset import Item

SIZES = ("original", "512", "384", "256")
REPAIR_QUALITY = 100  # The Inception script's, and TFDS's, for the same images.


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the bytes of a shard follow from, beside its images."""

    size: str = "original"  # Of SIZES: the longest that an image's shorter side may be, in pixels.
    quality: int = 90  # Of the JPEGs that are made smaller.
    restart_markers: bool = False  # As restarts.add.


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of the data set, and what becomes of it."""

    split: str
    name: str
    items: list[Item]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a shard holds. `repaired` and `dropped` are pairs of a file's name and the reason."""

    images: int
    bytes: int
    repaired: list[tuple[str, str]]
    dropped: list[tuple[str, str]]


def features():
    """TFDS's features of imagenet2012."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(imagenet.class_names())),
            "file_name": tfds.features.Text(),
        }
    )


def fault(data: bytes) -> str | None:
    """Why an image that can be decoded is no RGB or grey JPEG, or None where it is one."""
    import simplejpeg
    from PIL import Image

    with contextlib.suppress(ValueError):  # Of what is no JPEG.
        if simplejpeg.decode_jpeg_header(data, strict=False)[2] not in ("CMYK", "YCCK"):
            return None
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.mode} {image.format}"


def fit(data: bytes, settings: Settings) -> tuple[bytes, str | None]:
    """An image as it is stored.

    Args:
      data: encoded.
      settings: what is wanted.

    Returns:
      Its bytes, untouched where nothing has to be done, and what was wrong with them or None.

    Raises:
      ValueError: the image is damaged.
    """
    data, found = _fit(data, settings)
    return restarts.add(data) if settings.restart_markers else data, found


def _fit(data: bytes, settings: Settings) -> tuple[bytes, str | None]:
    import cv2
    import simplejpeg

    pixels = decode_image(data)
    found = fault(data)
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    if settings.size != "original" and shorter > int(settings.size):
        scale = int(settings.size) / shorter
        size = (round(width * scale), round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return simplejpeg.encode_jpeg(pixels, settings.quality, "RGB", "420"), found
    if found:
        return simplejpeg.encode_jpeg(pixels, REPAIR_QUALITY, "RGB", "444"), found
    return data, None


def make_shard(shard: Shard, work: pathlib.Path, settings: Settings, drop: bool) -> Report:
    """Writes one shard and its report, or reads the report where the shard is there already.

    Args:
      shard: the name and the images, in order.
      work: the directory that is worked in.
      settings: as for `fit`.
      drop: leave damaged images out, where otherwise they are an error.

    Raises:
      UserError: an image is damaged, and `drop` is not set.
    """
    path = work / "data" / shard.name
    report_path = work / "reports" / f"{shard.name}.json"
    if path.exists():
        report = Report(**json.loads(report_path.read_text()))
    else:
        # A worker whose first process was killed may live on for a moment: never one file for two.
        unfinished = work / "unfinished" / f"{shard.name}.{os.getpid()}"
        report = _write_shard(unfinished, shard.items, settings, drop)
        write_whole(report_path, json.dumps(dataclasses.asdict(report)))
        sync(unfinished)
        os.replace(unfinished, path)
    for name, why in () if drop else report.dropped:  # By an earlier run, which was to drop them.
        raise _damaged(next(item for item in shard.items if item.file_name == name), why)
    return report


def _write_shard(path: pathlib.Path, items: list[Item], settings: Settings, drop: bool) -> Report:
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    connector = features()
    serializer = tfds.core.example_serializer.ExampleSerializer(connector.get_serialized_info())
    # JPEGs don't become smaller; one record a group is what random access is quick for.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    images, repaired, dropped = 0, [], []
    try:
        for item in items:
            try:
                data, found = fit(inputs.read_item(item), settings)
            except UserError:  # The file can't be read, which says nothing about the image.
                raise
            except ValueError as error:
                if not drop:
                    raise _damaged(item, str(error)) from None
                dropped.append((item.file_name, str(error)))
                continue
            if found:
                repaired.append((item.file_name, found))
            images += 1
            example = {"image": data, "label": item.label, "file_name": item.file_name}
            example = serializer.get_tf_example(connector.encode_example(example))
            # By default the features of an example come in any order.
            writer.write(example.SerializeToString(deterministic=True))
        writer.close()
    except RuntimeError as error:  # Of the writer: the disk is full.
        raise UserError(f"can't write {path}: {error}") from None
    return Report(images, path.stat().st_size, repaired, dropped)


def _damaged(item: Item, why: str) -> UserError:
    place = f"{item.file_name} in {item.path}, at {item.offset:,},"
    return UserError(
        f"{item.path if item.path.endswith(item.file_name) else place} is a damaged image: {why}. "
        "Get a whole copy and run the same command again, or leave such images out by "
        "--on_corrupt=drop"
    )


def sync(path: pathlib.Path) -> None:
    """Waits until a file is on the disk: a name given to it before may outlive its content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_whole(path: pathlib.Path, text: str) -> None:
    """So that a crash leaves the old file or the new one, on the disk as well."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    sync(temporary)
    os.replace(temporary, path)
