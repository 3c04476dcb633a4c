"""The PyTorch peer, which uses Pillow in the worker processes of a DataLoader."""

import argparse
import itertools
import pathlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from benchmarks import measure

FILL = (measure.FILL,) * 3


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """A random crop (left, top, right, bottom), as from sample_distorted_bounding_box."""
    for _ in range(measure.CROP_ATTEMPTS):
        ratio = random.uniform(*measure.CROP_ASPECT)
        low, high = (round((area * width * height / ratio) ** 0.5) for area in measure.CROP_AREA)
        high = min(high, height, int((width + 0.5) / ratio))
        crop_height = random.randint(min(low, high), high)
        crop_width = round(crop_height * ratio)
        covered = crop_height * crop_width / (height * width)
        fits = 0 < crop_height <= height and 0 < crop_width <= width
        if fits and covered >= 0.1:
            left = random.randint(0, width - crop_width)
            top = random.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    side = int(0.875 * min(width, height))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    table = [min(255, value + addition) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


# Each operation takes the image and the argument from `measure.LEVELS`.
OPERATIONS = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": ImageOps.posterize,
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Rotate": lambda image, degrees: image.rotate(degrees, fillcolor=FILL),
    "ShearX": lambda image, shear: affine(image, 1, shear, 0, 0, 1, 0),
    "ShearY": lambda image, shear: affine(image, 1, 0, 0, shear, 1, 0),
    "TranslateY": lambda image, pixels: affine(image, 1, 0, 0, 0, 1, pixels),
}


def autoaugment(image: Image.Image) -> Image.Image:
    """Apply one of the 25 pairs of operations."""
    for name, probability, level in random.choice(measure.AUTOAUGMENT):
        if random.random() < probability:
            argument = measure.LEVELS[name](level) if name in measure.LEVELS else None
            if name in measure.SIGNED and random.random() < 0.5:
                argument = -argument
            image = OPERATIONS[name](image, argument)
    return image


class Photos(torch.utils.data.Dataset):
    """Augmented images, uint8 [RESOLUTION, RESOLUTION, 3]."""

    def __init__(self, folder: pathlib.Path, augment: bool):
        self._paths = sorted(map(str, folder.glob("*/*.jpg")))
        self._augment = augment

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(self._paths[index])
        if image.mode != "RGB":  # Without this check, convert() would copy the image.
            image = image.convert("RGB")
        size = (measure.RESOLUTION, measure.RESOLUTION)
        # The resize also crops, which saves a copy.
        image = image.resize(size, Image.Resampling.BICUBIC, random_box(*image.size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._augment:
            image = autoaugment(image)
        return torch.from_numpy(np.array(image))


def endless_order(count: int) -> Iterator[int]:
    """Every index once per epoch, without end, so that workers need not be restarted."""
    for _ in itertools.count():
        yield from random.sample(range(count), count)


def batches(args: argparse.Namespace) -> torch.utils.data.DataLoader:
    photos = Photos(pathlib.Path(args.photos) / "train", args.policy == "autoaugment")
    return torch.utils.data.DataLoader(
        photos, measure.BATCH_SIZE, sampler=endless_order(len(photos)), num_workers=args.threads
    )


if __name__ == "__main__":
    flags = measure.parse_flags(argparse.ArgumentParser())
    version = f"torch {torch.__version__}, Pillow {Image.__version__}"
    measure.report(batches(flags), flags, version, crop_decode=False)
