"""Origins of weights, which determine their names, padding, epsilon and preprocessing."""

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from effnet_jax.errors import UserError, check_choice
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.weights import keras, lukemelas, ours, tf_checkpoint, timm, torchvision
from effnet_jax.weights.names import WRAPPERS

NAMES = {
    "ours": ours.NAMES,
    "timm": timm.NAMES,
    "torchvision": torchvision.NAMES,
    "lukemelas": lukemelas.NAMES,
    "tf": tf_checkpoint.NAMES,
    "keras": keras.NAMES,
}


class Origin(NamedTuple):
    """An origin of weights.

    Attributes:
      names: key of NAMES.
      preprocess: values of a Preprocess that differ from our default for the family, by model;
        None: the default, for any model.
      padding: of the convolutions, "same" or "symmetric".
      torch_epsilon: models whose BatchNorm has PyTorch's epsilon, not TensorFlow's.
    """

    names: str
    preprocess: Mapping[str, dict[str, Any]] | None
    padding: str = "same"
    torch_epsilon: Container[str] = ()

    def epsilon(self, model: str) -> float:
        """Returns the epsilon of BatchNorm."""
        return 1e-5 if model in self.torch_epsilon else 1e-3


ORIGINS = {
    "ours": Origin("ours", None),
    "tf": Origin("tf", tf_checkpoint.PREPROCESS),
    # Both have TensorFlow's weights and therefore its preprocessing.
    "keras": Origin("keras", tf_checkpoint.PREPROCESS),
    "lukemelas": Origin("lukemelas", tf_checkpoint.PREPROCESS),
    "timm_tf": Origin("timm", timm.TENSORFLOW),
    "timm": Origin("timm", timm.OWN, "symmetric", VARIANTS),
    "torchvision": Origin(
        "torchvision", torchvision.RECIPES, "symmetric", torchvision.TORCH_EPSILON
    ),
}


def detect(found: Iterable[str], where: str) -> str:
    """Returns the key of NAMES for the format with names `found`; `where` is for messages."""
    for key, names in NAMES.items():
        if any(re.fullmatch(names.pattern, name) for name in found):
            return key
    shown = ", ".join(sorted(found)[:8]) or "none at all"
    for wrapper in WRAPPERS:
        inside = [name.removeprefix(wrapper) for name in found if name.startswith(wrapper)]
        if any(re.fullmatch(names.pattern, name) for names in NAMES.values() for name in inside):
            others = sorted(name for name in found if not name.startswith(wrapper))
            raise UserError(
                f"{where} has a network in the names that start with {wrapper!r}, and other names: "
                f"{', '.join(others[:8])}. Save only the network's state dict"
            )
    raise UserError(
        f"{where} has names of no known format ({', '.join(NAMES)}); its first names: {shown}"
    )


def choose(key: str, stated: str | None, where: str) -> str:
    """Returns the origin of weights with the names of `key`.

    Raises UserError if the stated origin has other names, or if none is stated and several fit.
    """
    if stated is not None:
        check_choice("origin", stated, ORIGINS)
        if ORIGINS[stated].names != key:
            raise UserError(
                f"{where} has the names of {key}, but origin {stated} has the names of "
                f"{ORIGINS[stated].names}"
            )
        return stated
    first, *others = (name for name, origin in ORIGINS.items() if origin.names == key)
    if others:
        raise UserError(
            f"{where} has names that two kinds of weights share, with different padding and "
            "epsilon: give origin timm_tf for TensorFlow's (timm's and geffnet's "
            "tf_efficientnet...), or timm for timm's own (efficientnet...)"
        )
    return first
