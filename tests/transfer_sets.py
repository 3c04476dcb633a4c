"""Miniatures of the paper's data sets for transfer learning: their authors' layouts, and TFDS's."""

import io
import pathlib
import zlib

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from tests.tfds_sets import write_features

COUNT = 4  # Images of each class in each list.
CLASSES = {
    "fgvc_aircraft": ("707-320", "Cessna 172", "F/A-18"),
    "birdsnap": ("Acadian Flycatcher", "Acorn Woodpecker", "Zone-tailed Hawk"),
    "cars196": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo 2012"),
}


def _save(path: pathlib.Path, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = number * 7 % 256, 90, zlib.crc32(path.parent.name.encode()) % 256
    Image.new("RGB", (40, 30), colour).save(path, quality=90)
    return path.name


def write_aircraft(root: pathlib.Path) -> pathlib.Path:
    """fgvc-aircraft-2013b: 4 training, 4 validation and 4 test images of each variant."""
    data, classes = root / "data", CLASSES["fgvc_aircraft"]
    lists = {name: [] for name in ("train", "val", "test")}
    for number in range(3 * COUNT * len(classes)):
        _save(data / "images" / f"{number:07d}.jpg", number)
        lists[[*lists][number % 3]].append(f"{number:07d} {classes[number // 3 % len(classes)]}")
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    for name, lines in lists.items():
        (data / f"images_variant_{name}.txt").write_text("\n".join(lines) + "\n")
    (data / "variants.txt").write_text("\n".join(classes) + "\n")
    return root


def write_birdsnap(root: pathlib.Path) -> pathlib.Path:
    """The archive after get_birdsnap.py: 8 training and 4 test images of each species."""
    images, test = ["url\tmd5\tpath\tspecies_id\tbb_x1"], ["path"]
    species = ["id\tcommon\tscientific\tdir"]
    for label, name in enumerate(CLASSES["birdsnap"]):
        folder = name.replace(" ", "_")
        species.append(f"{label + 1}\t{name}\tAvis\t{folder.lower()}")
        for number in range(3 * COUNT):
            path = f"{folder}/{number}.jpg"
            _save(root / "download" / "images" / path, number)
            images.append(f"http://x\t0\t{path}\t{label + 1}\t3")
            test += [path] * (number % 3 == 0)
    for name, lines in (("images", images), ("test_images", test), ("species", species)):
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_cars(root: pathlib.Path) -> pathlib.Path:
    """The archives and the devkit: 8 training and 4 test images of each class."""
    (root / "devkit").mkdir(parents=True)
    classes = np.array(CLASSES["cars196"], object)
    scipy.io.savemat(root / "devkit" / "cars_meta.mat", {"class_names": classes})
    for part, name, count in (
        ("train", "devkit/cars_train_annos.mat", 2 * COUNT),
        ("test", "cars_test_annos_withlabels.mat", COUNT),
    ):
        rows = np.zeros(count * len(classes), [("class", object), ("fname", object)])
        for number, row in enumerate(rows):
            row["class"] = np.uint8(number % len(classes) + 1)
            row["fname"] = _save(root / f"cars_{part}" / f"{number + 1:05d}.jpg", number)
        scipy.io.savemat(root / name, {"annotations": rows})
    return root


WRITERS = {"fgvc_aircraft": write_aircraft, "birdsnap": write_birdsnap, "cars196": write_cars}


def write_tfds(data_dir: pathlib.Path, name: str, splits: tuple[str, ...], classes: int) -> None:
    """A data set with the splits and the number of classes of one in TFDS; 20 made-up images."""
    features = {
        "image": tfds.features.Image(encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 90, 160)).save(buffer, "PNG")
    labels = [number % classes for number in range(20)]
    records = [{"image": buffer.getvalue(), "label": label} for label in labels]
    write_features(data_dir, name, features, records, splits)
