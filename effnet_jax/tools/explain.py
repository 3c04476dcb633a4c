"""Why a network sees what it sees: the parts of images that speak for a class.

As in: effnet-jax explain cat.jpg photos/ --weights=lite0.safetensors --out=maps

IMAGE, --weights, --model, --origin and --classes are as for predict. For each image, DIR/NAME.png
shows the crop that the network sees, and over it the maps of the --top most probable classes, first
that of --class; DIR/NAME.npy has the maps, float32 [classes, h, w] in the same order. Methods: cam
(default), gradcam, layercam, and occlusion, which takes 196 predictions. --layer is head (default),
stem, or stage1, stage2 and so on; of layers before the last only gradcam and layercam have maps. An
image that can't be read is reported on stderr, the others are explained, and the exit code is 1.
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
add = PARSER.add_argument
add("images", nargs="+", metavar="IMAGE")
add("--weights", required=True, metavar="FILE|WORKDIR")
for name in ("model", "origin", "classes"):
    add(f"--{name}", help="of weights that don't state it; see convert")
add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder of the maps")
add("--class", dest="shown", metavar="NAME", help="a class to explain, by its name or ImageNet's")
add("--top", type=flags.count, default=3, help="most probable classes to explain")
add("--method", default="cam", help="cam, gradcam, layercam or occlusion")
add("--layer", help="of the network; by default the last")
add("--overwrite", action="store_true", help="replace maps in DIR")


def find_class(name: str, classes: Sequence[str], titles: dict[str, str]) -> int:
    """The number of a class by its name or title; raises UserError where there is not one."""
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
            f"--class={name} is {len(found)} classes: {', '.join(classes[n] for n in found)}"
        )
    return found[0]


def outputs(paths: Sequence[str], out: pathlib.Path, overwrite: bool) -> list[pathlib.Path]:
    """The PNG of each image, named as the image; raises UserError where one is there already."""
    files, taken = [], collections.Counter()
    for path in paths:
        name = "stdin" if path == "-" else pathlib.PurePath(path).stem
        while taken[name]:
            taken[name] += 1
            name = f"{name}-{taken[name]}"
        taken[name] += 1
        files.append(out / f"{name}.png")
    there = [each for file in files for each in (file, file.with_suffix(".npy")) if each.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} is there already; --overwrite replaces it")
    return files


def explainer(model: Any, preprocess: Any, args: argparse.Namespace, fixed: int | None):
    """A function of variables and uint8 [1, r, r, 3]: classes, probabilities, maps [k, h, w]."""
    import jax
    import jax.numpy as jnp

    from effnet_jax import explain
    from effnet_jax.data.preprocess import normalize

    @jax.jit  # As one program: what maps and probabilities share is computed once.
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
