"""Draws activation maps: the parts of an image that support a class.

Examples:
  effnet-jax explain cat.jpg photos/ --weights=lite0.safetensors --out=maps
  effnet-jax explain cat.jpg --weights=lite0.safetensors --out=maps --method=layercam --layer=stage5

For each image, DIR/NAME.png shows the crop that the network sees, and over it the maps of the most
probable classes, after that of --class. DIR/NAME.npy has the maps, float32 [classes, h, w] in the
same order.

cam has maps of the last layer only, gradcam and layercam of every layer. occlusion has no layer,
and costs 196 predictions per image. An image that can't be read is reported on stderr; the others
are explained, and the exit code is 1.
"""

import argparse
import collections
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from effnet_jax import flags
from effnet_jax.errors import ImagesFailed, UserError, near
from effnet_jax.tools import predict

COLUMNS, MOST = 8, 50  # Of a picture: cells in a row, and classes.
SUGGESTED = 8  # Names of classes, in a message.
PARSER = flags.Parser(__doc__)
add = PARSER.group("input")
add("images", nargs="+")
flags.add_weights(add, required=True)
add = PARSER.group("maps")
name = "first class to explain, by its own name or ImageNet's English one"
add("--class", dest="shown", metavar="NAME", help=name)
add("--top", type=flags.count, default=3, help=" to explain")
add("--method", default="cam", help=": cam, gradcam, layercam or occlusion")
add("--layer", help=": stem, stage1, stage2 ... or head (default: the last)")
add = PARSER.group("output")
add("--out", required=True, type=pathlib.Path, help=": a folder for a PNG and a .npy per image")
add("--overwrite", action="store_true")


def find_class(name: str, classes: Sequence[str], titles: dict[str, str]) -> int:
    """The label of the class with a name or title; raises UserError for none or several."""
    found = [n for n, each in enumerate(classes) if name in (each, titles.get(each))]
    if not found:
        known = [*classes, *(titles[each] for each in classes if each in titles)]
        close = [each for each in known if name.lower() in each.lower()][:SUGGESTED]
        if name.isdecimal() and int(name) < len(classes):
            close = [classes[int(name)]]
        meant = ", ".join(close) or near(name, known)
        raise UserError(f"unknown --class={name}; did you mean: {meant}?")
    if len(found) > 1:
        raise UserError(
            f"--class={name} names {len(found)} classes; give one of "
            f"{', '.join(classes[n] for n in found)}"
        )
    return found[0]


def outputs(paths: Sequence[str], out: pathlib.Path, overwrite: bool) -> list[pathlib.Path]:
    """The PNG file for each image, named like the image; raises UserError if a file exists."""
    files, taken = [], collections.Counter()
    for path in paths:
        name = "stdin" if path == "-" else pathlib.PurePath(path).stem
        while taken[name]:
            taken[name] += 1
            name = f"{name}-{taken[name]}"
        taken[name] += 1
        files.append(out / f"{name}.png")
    existing = [each for png in files for each in (png, png.with_suffix(".npy")) if each.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} already exists; --overwrite replaces it")
    return files


def explainer(model: Any, preprocess: Any, args: argparse.Namespace, fixed: int | None):
    """Returns a function of variables and pixels, uint8 [1, r, r, 3].

    It returns the labels [k] of the classes that are explained, `fixed` first if it is not None,
    their probabilities [k], and their maps [k, h, w].
    """
    import jax
    import jax.numpy as jnp

    from effnet_jax import explain
    from effnet_jax.data.preprocess import normalize

    @jax.jit  # One program, so that maps and probabilities share their computations.
    def run(variables, pixels):
        images = normalize(pixels, preprocess.mean, preprocess.std)
        probabilities = jax.nn.softmax(model.apply(variables, images, train=False)[0][0])
        order = jnp.argsort(-probabilities)
        if fixed is not None:
            others = order[jnp.argsort(order == fixed)][:-1]
            order = jnp.concatenate([jnp.array([fixed]), others])
        chosen = order[: args.top + (fixed is not None)]
        found = explain.maps(model, variables, images, chosen[None], args.method, args.layer)
        return chosen, probabilities[chosen], found[0]

    return run


def main(args: argparse.Namespace) -> None:
    import jax

    from effnet_jax import explain, models, weights
    from effnet_jax.data import folders
    from effnet_jax.data.preprocess import Preprocess
    from effnet_jax.explain import drawing
    from effnet_jax.imagenet.dataset import titles
    from effnet_jax.run.files import make_folder

    if args.top > MOST:
        raise UserError(f"--top={args.top}: a picture has the maps of at most {MOST} classes")
    paths = list(dict.fromkeys(folders.list_images(args.images)))
    files = dict(zip(paths, outputs(paths, args.out, args.overwrite), strict=True))
    found = weights.load(args.weights, args.model, args.origin, args.classes)
    model, preprocess = models.build(found.config), Preprocess(**found.preprocess)
    explain.check(model, args.method, args.layer)
    fixed = None if args.shown is None else find_class(args.shown, found.classes, titles())
    run, variables = explainer(model, preprocess, args, fixed), jax.device_put(found.variables)
    make_folder("--out", args.out)

    see = functools.partial(drawing.see, preprocess)
    bad = []
    for path, (pixels, seen) in predict.readable(paths, see, bad):
        labels, probabilities, each = jax.device_get(run(variables, pixels[None]))
        if not np.isfinite(probabilities).all():
            raise UserError("the network's outputs are not finite, as after training diverged")
        names = [titles().get(found.classes[n], found.classes[n]) for n in labels]
        cells = [(seen, None, files[path].stem)]
        for name, probability, one in zip(names, probabilities, each, strict=True):
            cells.append((seen, one, f"{name} {probability:.1%}"))
        try:
            rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
            drawing.draw(rows).savefig(files[path])
            np.save(files[path].with_suffix(".npy"), each)
        except OSError as error:
            raise UserError(f"can't write {files[path]}: {error.strerror}") from None
        print(f"{files[path]}: {', '.join(title for *_, title in cells[1:])}", flush=True)
    if bad:
        raise ImagesFailed(f"{len(bad)} of {len(paths)} images could not be read")
