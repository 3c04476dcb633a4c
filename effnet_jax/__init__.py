"""EfficientNet (arXiv 1905.11946) in JAX: compound scaling, sharded training, exact resume."""

from typing import Any

__version__ = "0.1.0"


def load(
    source: str, model: str | None = None, origin: str | None = None, classes: str | None = None
) -> tuple[Any, dict[str, Any], Any]:
    """A network with its weights, ready to use.

    As in:
      model, variables, preprocess = effnet_jax.load("lite0.safetensors")
      logits, features = model.apply(variables, preprocess("cat.jpg"), train=False)

    Args:
      source: a file of weights, the workdir of a run, or hf://ORG/NAME; see `weights.load`.
      model, origin, classes: see `weights.load`, which also returns the classes.

    Returns:
      A `models.network.Network`, its variables on the device, and a `data.preprocess.Preprocess`.
    """
    # Imported here, so that importing the package costs nothing.
    import jax

    from effnet_jax import models, weights
    from effnet_jax.data.preprocess import Preprocess

    found = weights.load(source, model, origin, classes)
    variables = jax.device_put(found.variables)
    return models.build(found.config), variables, Preprocess(**found.preprocess)
