"""Figure 7: activation maps of several networks side by side, for the same images."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.figure
import numpy as np

from effnet_jax import config as config_lib
from effnet_jax import explain, models, scaling, weights
from effnet_jax.data import sources
from effnet_jax.data.decode import decode_image
from effnet_jax.data.preprocess import Preprocess, content, normalize
from effnet_jax.errors import UserError, check_choice
from effnet_jax.explain import drawing
from effnet_jax.imagenet.dataset import titles
from effnet_jax.models.network import Network
from effnet_jax.report import pictures
from effnet_jax.report.results import Compared

IMAGES = 4  # Taken from the evaluation of the first network's run if --images is not given.


@functools.partial(jax.jit, static_argnames="model")
def predict(model: Network, variables: dict[str, Any], inputs: np.ndarray) -> jax.Array:
    """The probabilities of the classes for normalised images, [N, classes]."""
    return jax.nn.softmax(model.apply(variables, inputs, train=False)[0])


class Applied(NamedTuple):
    """A network, its normalised inputs, the parts of the images that they show, probabilities."""

    model: Network
    variables: dict[str, Any]
    inputs: np.ndarray
    parts: list[np.ndarray]
    probabilities: np.ndarray

    @classmethod
    def of(cls, network: weights.Weights, images: Sequence[bytes]) -> "Applied":
        model, preprocess = models.build(network.config), Preprocess(**network.preprocess)
        pixels, parts = zip(*(drawing.see(preprocess, each) for each in images), strict=True)
        inputs = normalize(np.stack(pixels), preprocess.mean, preprocess.std)
        probabilities = np.asarray(predict(model, network.variables, inputs))
        return cls(model, network.variables, inputs, list(parts), probabilities)

    def maps(self, labels: np.ndarray, compared: Compared) -> np.ndarray:
        options = labels, compared.method, compared.layer
        return np.asarray(explain.maps(self.model, self.variables, self.inputs, *options))


def evaluated(workdir: str) -> list[tuple[str, bytes]]:
    """Classes and bytes of a few images on which the run in a workdir is evaluated."""
    if not pathlib.Path(workdir, config_lib.FILE).is_file():
        raise UserError(f"{workdir} is not the workdir of a run with images; add --images")
    data = config_lib.load(workdir).data
    few = pictures.Few(sources.open_source(data, data.eval_split), IMAGES)
    return [(few.classes[number], few[number]["image"]) for number in range(len(few))]


def name_networks(networks: Sequence[str]) -> list[str]:
    """The last part of each path, without .safetensors; the whole path if several share a name."""
    short = [pathlib.PurePath(each).name.removesuffix(".safetensors") for each in networks]
    return [
        name if short.count(name) == 1 else each for name, each in zip(short, networks, strict=True)
    ]


def read_images(compared: Compared) -> list[tuple[str | None, bytes]]:
    """Pairs of the class, or None if it is unknown, and the bytes of each image to show."""
    images = []
    for path in compared.images:
        try:
            decode_image(data := content(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"can't read {path}: {reason}") from None
        images.append((None, data))
    return images or evaluated(compared.networks[0])


def compare(compared: Compared) -> tuple[matplotlib.figure.Figure, str, list[dict[str, Any]]]:
    """The figure, its caption, and a row of its CSV for each network and image.

    Raises UserError if the networks have different classes or an image can't be read.
    """
    names, images = name_networks(compared.networks), read_images(compared)
    loaded = [weights.load(each) for each in compared.networks]
    classes = loaded[0].classes
    for name, each in zip(names, loaded, strict=True):
        explain.check(models.build(each.config), compared.method, compared.layer)
        if each.classes != classes:
            raise UserError(f"{names[0]} and {name} have different classes; compare others")
    applied = [Applied.of(each, [image for _, image in images]) for each in loaded]
    best = np.mean([each.probabilities for each in applied], 0).argmax(1)
    labels = np.array(
        [
            number if own is None else classes.index(check_choice("class", own, classes))
            for (own, _), number in zip(images, best, strict=True)
        ]
    )
    shown = [titles().get(classes[label], classes[label]) for label in labels]
    cells = [[(image, None, title)] for image, title in zip(applied[0].parts, shown, strict=True)]
    rows = []
    for name, each in zip(names, applied, strict=True):
        drawn = each.maps(labels, compared)
        cost = scaling.cost(each.model.architecture.layers())
        for number, label in enumerate(labels):
            probability = each.probabilities[number, label]
            title = f"{name}\n{probability:.0%}"
            cells[number].append((each.parts[number], drawn[number], title))
            row = {"network": name, "parameters": cost.parameters}
            row |= {"multiply_adds": cost.multiply_adds, "image": number + 1}
            rows.append(row | {"class": shown[number], "probability": round(float(probability), 4)})
    layer = f" of {compared.layer}" if compared.layer else ""
    caption = (
        f"Where each network sees the class above the image ({compared.method}{layer}), and the "
        "probability that it predicts for the class. Each map is relative to its own largest value."
    )
    return drawing.draw(cells, width=1.2), caption, rows
