"""Measure how much of the activation maps for cluttered digits lies on the digit.

python -m benchmarks.digit_maps WORKDIR... [--csv=FILE]
"""

import argparse
import pathlib
from unittest import mock

import cv2
import jax
import numpy as np

import effnet_jax
from effnet_jax import csv_rows, explain
from effnet_jax.data import digits

Box = tuple[int, int, int, int]  # Top, left, bottom, right, in pixels.


def labelled(count: int) -> tuple[list[np.ndarray], list[int], list[Box]]:
    """The first test images, uint8 [h, w, 3], with their labels and the boxes of their digits."""
    windows, place = [], digits.place

    def watch(canvas, *arguments):
        before = canvas.copy()
        place(canvas, *arguments)
        windows.append(np.nonzero(canvas != before))

    source, images, labels, boxes = digits.ClutteredDigits("test"), [], [], []
    with mock.patch.object(digits, "place", watch):
        for number in range(count):
            pixels, label = source.draw("test", number)
            images.append(pixels[..., None].repeat(3, 2))
            labels.append(label)
            y, x = windows[-1]  # The digit is placed after the clutter.
            boxes.append((y.min(), x.min(), y.max() + 1, x.max() + 1))
    return images, labels, boxes


def share(found: np.ndarray, box: Box, size: tuple[int, int]) -> float:
    """The share of a map's positive mass inside a box of an image of `size` (height, width)."""
    top, left, bottom, right = box
    found = cv2.resize(np.maximum(found, 0), size[::-1], interpolation=cv2.INTER_LINEAR)
    return found[top:bottom, left:right].sum() / found.sum()


def is_inside(found: np.ndarray, box: Box, size: tuple[int, int]) -> bool:
    """Whether the centre of the map's largest cell is inside a box."""
    top, left, bottom, right = box
    place = np.array(np.unravel_index(found.argmax(), found.shape)) + 0.5
    y, x = place * size / found.shape
    return bool(top <= y < bottom and left <= x < right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--method", default="layercam")
    parser.add_argument("--layer", default="stage3")
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    images, labels, boxes = labelled(args.images)
    size, rows = (digits.CANVAS, digits.CANVAS), []
    area = np.mean([(bottom - top) * (right - left) for top, left, bottom, right in boxes])
    for workdir in args.workdirs:
        model, variables, preprocess = effnet_jax.load(workdir)
        arguments = variables, preprocess(images), np.array(labels), args.method, args.layer
        found = jax.device_get(explain.maps(model, *arguments))
        row = {"network": workdir.name, "method": args.method, "layer": args.layer}
        row |= {"cells": found.shape[1], "images": len(images)}
        pairs = list(zip(found, boxes, strict=True))
        row["mass_on_digit"] = round(float(np.mean([share(*pair, size) for pair in pairs])), 4)
        row["largest_on_digit"] = float(np.mean([is_inside(*pair, size) for pair in pairs]))
        row["area_of_digit"] = round(float(area / digits.CANVAS**2), 4)
        rows.append(row | csv_rows.describe_machine())
        print(row)
    if args.csv:
        csv_rows.append_csv(args.csv, rows)


if __name__ == "__main__":
    main()
