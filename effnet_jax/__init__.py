"""EfficientNet (arXiv 1905.11946) in JAX: compound scaling, sharded training, exact resume."""

from collections.abc import Sequence
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


def backbone(
    model: str | None = None,
    weights: Any = None,
    strides: Sequence[int] = (4, 8, 16, 32),
    in_channels: int = 3,
    frozen: bool = False,
    dtype: str = "float32",
    origin: str | None = None,
) -> Any:
    """A Flax module that returns feature maps by stride, for other networks.

    As in:
      backbone = effnet_jax.backbone("lite0", weights="lite0.safetensors")
      backbone.channels  # {4: 24, 8: 40, 16: 112, 32: 320}
      variables = backbone.init(jax.random.key(0), images)  # The weights of the file.
      features = backbone.apply(variables, images)  # {4: [N, H / 4, W / 4, 24], ...}

    Args:
      model: its name, as "b0"; may be left out where `weights` is given.
      weights: a source as for `weights.load`, or what that returned; None: random.
      strides: the feature maps to return, each the output of the last block with that stride.
      in_channels: of the images; other than 3, the first convolution is adapted as timm does.
      frozen: keep the weights, with BatchNorm's statistics, in the collection "frozen" and not in
        "params" and "batch_stats".
      dtype: of the computation, float32 or bfloat16; weights are float32.
      origin: of the weights; see `weights.load`.

    Returns:
      A `models.backbone.Backbone`.

    Raises:
      UserError: a stride that the network lacks, neither model nor weights, in_channels below 1, or
        what `weights.load` raises.
    """
    from effnet_jax import models
    from effnet_jax import weights as weights_lib
    from effnet_jax.errors import UserError
    from effnet_jax.models import backbone as backbones
    from effnet_jax.weights import ours

    if model is None and weights is None:
        raise UserError("backbone needs the name of a model, or weights")
    if in_channels < 1:
        raise UserError(f"in_channels must be 1 or more; got {in_channels}")
    found = weights
    if weights is not None and not isinstance(weights, weights_lib.Weights):
        found = weights_lib.load(weights, model, origin)
    elif found and (model or origin):
        raise UserError("give model and origin with a source of weights, not with loaded ones")
    config = (found.config if found else ours.config_of(model)).copy_and_resolve_references()
    with config.unlocked():
        config.dtype = dtype
    made = backbones.make(models.build(config), strides, in_channels=in_channels, frozen=frozen)
    if not found:
        return made
    return made.clone(initial=backbones.trained(made, found.variables))
