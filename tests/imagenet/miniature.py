"""A made-up ImageNet: tars and folders of the real structure, with few images.

The images are cut from the photographs that scikit-image ships. They have five of ImageNet's
classes, among them those of the first validation images, whose names and labels are the real ones.
"""

import functools
import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

from effnet_jax.imagenet import dataset as imagenet

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
CLASSES = 5
TRAIN_IMAGES = 12  # Of each class.
VALIDATION_IMAGES = 10
CMYK, PNG, TRUNCATED = 7, 21, 40  # Which of the training images are odd.


@functools.cache
def photographs() -> tuple[Image.Image, ...]:
    import skimage

    folder = pathlib.Path(skimage.__file__).parent / "data"
    return tuple(Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS)


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    image.save(data, kind, quality=88)
    return data.getvalue()


def crop(index: int, label: int) -> Image.Image:
    """Image `index`, of a photograph and at a scale that its label chooses."""
    rng = np.random.default_rng(index)
    photograph = photographs()[label % len(PHOTOGRAPHS)]
    width, height = (int(side) for side in rng.integers(200, 300, 2))
    left = int(rng.integers(0, photograph.width - width))
    top = int(rng.integers(0, photograph.height - height))
    return photograph.crop((left, top, left + width, top + height))


def wnids() -> list[str]:
    """The classes: those of the first validation images, as many as there are to be."""
    names, found, number = imagenet.class_names(), [], 0
    while len(found) < CLASSES:
        number += 1
        name = names[imagenet.validation_label(f"ILSVRC2012_val_{number:08d}.JPEG", "")]
        if name not in found:
            found.append(name)
    return sorted(found)


@functools.cache
def make_images(truncated: bool = True) -> tuple[dict[str, dict[str, bytes]], dict[str, bytes]]:
    """Training images by class and file name, and validation images by file name, encoded."""
    classes = wnids()
    train = {name: {} for name in classes}
    for index in range(CLASSES * TRAIN_IMAGES):
        label = index % CLASSES
        image = crop(index, label)
        data = encode(image)
        if index == CMYK:
            data = encode(image.convert("CMYK"))
        elif index == PNG:
            data = encode(image, "PNG")
        elif index == TRUNCATED and truncated:
            data = data[: len(data) // 2]
        train[classes[label]][f"{classes[label]}_{index * 37}.JPEG"] = data
    validation, number = {}, 0
    while len(validation) < VALIDATION_IMAGES:
        number += 1
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        wnid = imagenet.class_names()[imagenet.validation_label(name, "")]
        if wnid in classes:
            validation[name] = encode(crop(1000 + number, classes.index(wnid)))
    return train, validation


def write_tar(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_miniature(folder: pathlib.Path, truncated: bool = True) -> tuple[pathlib.Path, ...]:
    """Writes the two tars of a miniature ImageNet to `folder`; one of its images may be truncated.

    Returns:
      The paths of the training and the validation tar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, validation = make_images(truncated)
    inner = {
        f"{name}.tar": write_tar(folder / "inner.tar", files).read_bytes()
        for name, files in train.items()
    }
    (folder / "inner.tar").unlink()
    names = imagenet.ARCHIVES
    return (
        write_tar(folder / names[imagenet.TRAIN].name, inner),
        write_tar(folder / names[imagenet.VALIDATION].name, validation),
    )


def make_folder(folder: pathlib.Path, truncated: bool = True, flat: bool = True) -> pathlib.Path:
    """The same images as files, the validation images side by side or in folders of classes."""
    train, validation = make_images(truncated)
    files = {f"train/{wnid}/{name}": data for wnid in train for name, data in train[wnid].items()}
    for name, data in validation.items():
        wnid = imagenet.class_names()[imagenet.validation_label(name, "")]
        files[f"val/{name}" if flat else f"val/{wnid}/{name}"] = data
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
