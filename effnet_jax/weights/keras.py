"""keras.applications: EfficientNetB0 to B7 and EfficientNetV2B0 to L, as .h5 files.

The files have a group a layer: those of `save_weights`, of `save`, and those that Keras downloads.
Keras 3's .weights.h5 calls layers by their kind and number, and is refused.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from effnet_jax.config import NORMALIZATIONS
from effnet_jax.errors import UserError
from effnet_jax.weights import names
from effnet_jax.weights.names import Place, Shapes

OUTSIDE = {"stem/conv": "stem_conv", "head/conv": "top_conv", "classifier": "predictions"}
PARTS = {
    "expand": "expand_conv",
    "squeeze_excite/reduce": "se_reduce",
    "squeeze_excite/expand": "se_expand",
    "project": "project_conv",
}
NORMS = {"expand": "expand_bn", "depthwise": "bn", "project": "project_bn"}


def _block(place: Place) -> str:
    return f"block{place.stage + 1}{chr(ord('a') + place.block)}"


def _layer(place: Place) -> str:
    if place.role in OUTSIDE:
        return OUTSIDE[place.role]
    if place.role == "depthwise":
        return f"{_block(place)}_dwconv{2 if place.v2 else ''}"
    return f"{_block(place)}_{PARTS[place.role]}"


def _norm(place: Place) -> str:
    outside = {"stem/conv": "stem_bn", "head/conv": "top_bn"}
    return outside.get(place.role) or f"{_block(place)}_{NORMS[place.role]}"


def clean(found: Iterable[str], weights: str) -> dict[str, str]:
    """See `Names.clean`: layer and weight, of a path that may go through the model's own group."""
    kept = {}
    for name in found:
        path = name.removesuffix(":0").split("/")
        beside = path[0] in ("optimizer_weights", "top_level_model_weights")
        if not beside and not path[-2 if len(path) > 1 else 0].startswith("normalization"):
            kept["/".join(path[-2:])] = name
    return kept


NAMES = names.tensorflow(r"(.+/)?(stem_conv|block\d[a-z]_\w+)/\w+(:0)?", _layer, _norm, clean)


def normalization(shapes: Shapes, read: Callable[[str], np.ndarray]) -> dict[str, Any]:
    """mean and std of a Preprocess, from the file's Normalization layer; empty where it has none.

    V1's files for ImageNet hold the standard deviation where the layer takes the variance, and the
    model divides by the root once more (keras/applications/efficientnet.py, tensorflow issue
    49930): all in all, by the standard deviation. Other files mean what they say.
    """
    found = {}
    for name in shapes:
        path = name.removesuffix(":0").split("/")
        if len(path) > 1 and path[-2].startswith("normalization"):
            found[path[-1]] = np.ravel(read(name)).astype(np.float64)
    if not {"mean", "variance"} <= found.keys():
        return {}
    variance, std = found["variance"], np.array(NORMALIZATIONS["imagenet"][1])
    is_std = variance.shape == std.shape and np.allclose(variance, std, rtol=1e-3)
    std = std if is_std else np.sqrt(variance)
    return {"mean": tuple(found["mean"].tolist()), "std": tuple(std.tolist())}


def read(path: pathlib.Path) -> tuple[Shapes, Callable[[str], np.ndarray]]:
    """Shapes by name, and what reads an array."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path} is an HDF5 file: pip install 'effnet_jax[keras]'") from None
    shapes = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = item.shape

    try:
        file = h5py.File(path, "r")
        file.visititems(visit)
    except Exception as error:  # Of a damaged file, half a dozen kinds.
        raise UserError(f"{path} is a damaged HDF5 file: {error}") from None
    if any("/vars/" in f"/{name}" for name in shapes):
        raise UserError(
            f"{path} is Keras 3's form, which doesn't name its layers; write model.save('FILE.h5')"
        )

    def read_array(name: str) -> np.ndarray:
        try:
            return file[name][()]
        except OSError as error:
            raise UserError(f"{path} is a damaged HDF5 file: {error}") from None

    return shapes, read_array
