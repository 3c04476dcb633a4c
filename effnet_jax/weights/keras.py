"""keras.applications: EfficientNetB0 to B7 and EfficientNetV2B0 to L, as .h5 files.

Files of `save_weights` and `save`, and those that Keras downloads, have a group for each layer.
Keras 3's .weights.h5 names layers only by kind and number, and is rejected.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from effnet_jax.config import NORMALIZATIONS
from effnet_jax.errors import UserError
from effnet_jax.weights.names import TENSORFLOW, Array, Names, by_plain_name

# Names of a layer and its normalisation, by role.
PARTS = {
    "stem/conv": ("stem_conv", "stem_bn"),
    "expand": ("expand_conv", "expand_bn"),
    "depthwise": ("dwconv", "bn"),
    "squeeze_excite/reduce": ("se_reduce", ""),
    "squeeze_excite/expand": ("se_expand", ""),
    "project": ("project_conv", "project_bn"),
    "head/conv": ("top_conv", "top_bn"),
    "classifier": ("predictions", ""),
}
UNNAMED = (
    "Keras 3's format doesn't name the layers. Where Keras is installed, load it (weights only: "
    "build the model, then model.load_weights) and call model.save('FILE.h5'), as in:\n"
    "  python -c \"import keras; model = keras.saving.load_model('FILE.keras', compile=False); "
    "model.save('FILE.h5')\""
)
NOT_WEIGHTS = ("optimizer_weights", "top_level_model_weights")  # First group of a path.


def _parts(array: Array) -> tuple[str, str]:
    return ("dwconv2", "bn") if array.role == "depthwise" and array.v2 else PARTS[array.role]


def _path(name: str) -> list[str]:
    """Returns layer and weight, the last two names of a path; the model's group may come before."""
    return name.removesuffix(":0").split("/")[-2:]


def clean(found: Iterable[str], weights: str) -> dict[str, str]:
    """See `Names.clean`."""
    return by_plain_name(
        ("/".join(_path(name)), name)
        for name in found
        if not name.startswith(NOT_WEIGHTS) and not _path(name)[0].startswith("normalization")
    )


NAMES = Names(
    r"(.+/)?(stem_conv|block\d[a-z]_\w+)/\w+(:0)?",
    block=lambda array: f"block{array.stage + 1}{chr(ord('a') + array.block)}_",
    parts=_parts,
    **TENSORFLOW,
    clean=clean,
)


def normalization(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns mean and std of a Preprocess from the Normalization layer; empty without that layer.

    V1's files for ImageNet have the standard deviation in place of the variance. The model divides
    by its root twice (keras/applications/efficientnet.py, tensorflow issue 49930), that is, by the
    standard deviation. Other files have the variance.
    """
    statistics = {}
    for name, value in arrays.items():
        layer, *leaf = _path(name)
        if leaf and layer.startswith("normalization"):
            statistics[leaf[0]] = np.ravel(value).astype(np.float64)
    if not {"mean", "variance"} <= statistics.keys():
        return {}
    variance, std = statistics["variance"], np.array(NORMALIZATIONS["imagenet"][1])
    is_std = variance.shape == std.shape and np.allclose(variance, std, rtol=1e-3)
    std = std if is_std else np.sqrt(variance)
    return {"mean": tuple(statistics["mean"].tolist()), "std": tuple(std.tolist())}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file, by path."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path} is an HDF5 file, which needs h5py: pip install h5py") from None
    arrays = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(NOT_WEIGHTS):
            arrays[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except Exception as error:  # A damaged file raises half a dozen types of error.
        raise UserError(f"{path} is a damaged HDF5 file: {error}") from None
    if any("/vars/" in f"/{name}" for name in arrays):
        raise UserError(f"{path} is a .weights.h5 file. {UNNAMED}")
    return arrays
