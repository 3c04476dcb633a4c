"""Where weights come from decides their names, padding, epsilon and preprocessing."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from effnet_jax.errors import UserError, check_choice
from effnet_jax.weights import keras, lukemelas, ours, tf_checkpoint, timm, torchvision

NAMES = {
    "ours": ours.NAMES,
    "timm": timm.NAMES,
    "torchvision": torchvision.NAMES,
    "lukemelas": lukemelas.NAMES,
    "tf": tf_checkpoint.NAMES,
    "keras": keras.NAMES,
}


class Origin(NamedTuple):
    """Whose weights they are.

    Attributes:
      names: which of NAMES they have.
      padding: of the convolutions, "same" or "symmetric".
      epsilon: of BatchNorm, by model.
      preprocess: by model, the keys of a Preprocess that aren't our default for the family.
    """

    names: str
    padding: str
    epsilon: Callable[[str], float]
    preprocess: Callable[[str], dict[str, Any]]


def _tensorflow(model: str) -> float:
    return 1e-3


def _torch(model: str) -> float:
    return 1e-5


def _torchvision(model: str) -> dict[str, Any]:
    if model not in torchvision.RECIPES:
        raise UserError(
            f"torchvision has no weights of {model}; it has {', '.join(torchvision.RECIPES)}"
        )
    return torchvision.preprocess(torchvision.RECIPES[model])


ORIGINS = {
    "ours": Origin("ours", "same", _tensorflow, lambda model: {}),
    "tf": Origin("tf", "same", _tensorflow, tf_checkpoint.preprocess),
    # Both have TensorFlow's weights, and so its preprocessing.
    "keras": Origin("keras", "same", _tensorflow, tf_checkpoint.preprocess),
    "lukemelas": Origin("lukemelas", "same", _tensorflow, tf_checkpoint.preprocess),
    "timm_tf": Origin(
        "timm", "same", _tensorflow, lambda model: timm.preprocess(timm.TENSORFLOW[model])
    ),
    "timm": Origin("timm", "symmetric", _torch, lambda model: timm.preprocess(timm.OWN[model])),
    "torchvision": Origin("torchvision", "symmetric", torchvision.epsilon, _torchvision),
}


def detect(found: Iterable[str], where: str) -> str:
    """Which of NAMES a source has.

    Args:
      found: names in the source.
      where: the source, for messages.
    """
    for key, format in NAMES.items():
        if any(re.fullmatch(format.pattern, name) for name in found):
            return key
    shown = ", ".join(sorted(found)[:8]) or "none at all"
    raise UserError(
        f"{where} has the names of no format that is known ({', '.join(NAMES)}); the first in it: "
        f"{shown}"
    )


def choose(key: str, given: str | None, stated: str | None, where: str) -> str:
    """The origin, out of the names and of what was said of it.

    Args:
      key: of NAMES, the source's.
      given: by the person.
      stated: by the source.
      where: the source, for messages.
    """
    if given is not None:
        check_choice("origin", given, ORIGINS)
        if ORIGINS[given].names != key:
            raise UserError(
                f"{where} has the names of {key}, and origin {given} has those of "
                f"{ORIGINS[given].names}"
            )
    if chosen := given or stated:
        return chosen
    found = [name for name, origin in ORIGINS.items() if origin.names == key]
    if len(found) > 1:
        raise UserError(
            f"{where} has names that two kinds of weights share, with other padding and epsilon: "
            "give origin timm_tf for TensorFlow's (timm's and geffnet's tf_efficientnet...), or "
            "timm for timm's own (efficientnet...)"
        )
    return found[0]
