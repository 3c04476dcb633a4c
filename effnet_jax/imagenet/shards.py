"""The files of a prepared ImageNet: the bytes of each image, and how they are written."""

import contextlib
import io
import json
import os
import pathlib
from typing import NamedTuple

import simplejpeg
from PIL import Image

from effnet_jax.data.decode import decode_image
from effnet_jax.data.resizing import resize
from effnet_jax.errors import UserError
from effnet_jax.imagenet import inputs
from effnet_jax.imagenet.dataset import Item, features

SIZES = ("original", "512", "384", "256")
REPAIR_QUALITY = 100  # The Inception script's and TFDS's, for the same images.


class Settings(NamedTuple):
    """The bytes of a shard follow from these and its images."""

    size: str = "original"  # One of SIZES: the longest shorter side of an image, in pixels.
    quality: int = 90  # JPEG quality of images that are made smaller.
    drop: bool = False  # Leave damaged images out; otherwise they are an error.


class Shard(NamedTuple):
    """A file of the data set and its images, in order."""

    split: str
    name: str
    items: list[Item]


class Report(NamedTuple):
    """Content of a shard; `repaired` and `dropped` are pairs of a file's name and the reason."""

    images: int
    bytes: int
    repaired: list[tuple[str, str]]
    dropped: list[tuple[str, str]]


def _fault(data: bytes) -> str | None:
    """The mode and format of an image that is not an RGB or grey JPEG; None for one that is."""
    with contextlib.suppress(ValueError):  # It is not a JPEG.
        if simplejpeg.decode_jpeg_header(data, strict=False)[2] not in ("CMYK", "YCCK"):
            return None
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.mode} {image.format}"


def fit(data: bytes, settings: Settings) -> tuple[bytes, str | None]:
    """The bytes of an image as they are stored, and its fault or None.

    They change only if the image's size or kind has to. Raises ValueError for a damaged image.
    """
    pixels, found = decode_image(data), _fault(data)
    shorter = min(pixels.shape[:2])
    if settings.size != "original" and shorter > int(settings.size):
        shape = tuple(round(side * (int(settings.size) / shorter)) for side in pixels.shape[:2])
        pixels = resize(pixels, shape, "area")
        return simplejpeg.encode_jpeg(pixels, settings.quality, "RGB", "420"), found
    if found:
        return simplejpeg.encode_jpeg(pixels, REPAIR_QUALITY, "RGB", "444"), found
    return data, None


def make_shard(shard: Shard, work: pathlib.Path, settings: Settings) -> Report:
    """Writes a shard and its report, or reads the report if the shard exists.

    Raises UserError if an image is damaged and `settings.drop` is not set.
    """
    path, report_path = work / "data" / shard.name, work / "reports" / f"{shard.name}.json"
    # A worker lives on for a moment after its parent was killed: no file is written by two.
    unfinished = work / "unfinished" / f"{shard.name}.{os.getpid()}"
    is_new = not path.exists()
    if is_new:
        report = _write(unfinished, shard.items, settings)
    else:
        report = Report(**json.loads(report_path.read_text()))
    if report.dropped and not settings.drop:
        name, why = report.dropped[0]
        item = next(item for item in shard.items if item.file_name == name)
        place = f"{name} in {item.path}, at {item.offset:,},"
        raise UserError(
            f"{item.path if item.path.endswith(name) else place} is a damaged image: {why}. "
            "Get a whole copy and run the same command again, or leave such images out with "
            "--on_corrupt=drop"
        )
    if is_new:
        draft = unfinished.with_name(f"{unfinished.name}.json")
        draft.write_text(json.dumps(report._asdict()))
        _publish(draft, report_path)
        _publish(unfinished, path)
    return report


def _publish(draft: pathlib.Path, path: pathlib.Path) -> None:
    """Moves a whole file to its name, once it is on the disk: a crash never leaves half of it."""
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)


def _write(path: pathlib.Path, items: list[Item], settings: Settings) -> Report:
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module

    connector = features()
    serializer = tfds.core.example_serializer.ExampleSerializer(connector.get_serialized_info())
    # JPEGs don't get smaller by compression; one record a group makes random access fast.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    images, repaired, dropped = 0, [], []
    try:
        for item in items:
            try:
                data, found = fit(inputs.read_item(item), settings)
            except UserError:  # The file can't be read, which says nothing about the image.
                raise
            except ValueError as error:
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
    except RuntimeError as error:  # The writer's: the disk is full.
        raise UserError(f"can't write {path}: {error}") from None
    return Report(images, path.stat().st_size, repaired, dropped)
