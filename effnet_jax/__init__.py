"""EfficientNet (arXiv 1905.11946) in JAX: compound scaling, sharded training, exact resume."""

from collections.abc import Sequence
from typing import Any

__version__ = "0.1.0"
# Each function imports the modules that it needs, so that importing the package is fast.


def load(
    source: str,
    model: str | None = None,
    origin: str | None = None,
    classes: str | None = None,
    num_classes: int | None = None,
) -> tuple[Any, dict[str, Any], Any]:
    """Loads a network with its weights, ready to use.

    Example:
      model, variables, preprocess = effnet_jax.load("lite0.safetensors")
      logits, features = model.apply(variables, preprocess("cat.jpg"), train=False)

    Args:
      source: a file of weights, the workdir of a run, or hf://ORG/NAME; see `weights.load`.
      model, origin, classes: see `weights.load`, which also returns the classes.
      num_classes: outputs of a new classifier for training, which is all 0 and replaces the
        weights' own.

    Returns:
      A `models.network.Network`, its variables on the device, and a `data.preprocess.Preprocess`.
    """
    import jax
    import jax.numpy as jnp

    from effnet_jax import models, weights
    from effnet_jax.data.preprocess import Preprocess

    loaded = weights.load(source, model, origin, classes)
    variables = jax.device_put(loaded.variables)
    config = loaded.config.copy_and_resolve_references()
    if num_classes is not None:
        config.num_classes = num_classes
        old = variables["params"].pop("classifier")
        new = {name: jnp.zeros((*array.shape[:-1], num_classes)) for name, array in old.items()}
        variables["params"]["classifier"] = new
    return models.build(config), variables, Preprocess(**loaded.preprocess)


def create_model(model: str, num_classes: int = 1000, **settings: Any) -> Any:
    """Returns the Flax module of a model by name, as in `create_model("b0", num_classes=10)`.

    `model.init_variables(jax.random.key(0))` returns its initial variables. `settings` are other
    keys of `config.model`, such as dtype="bfloat16". Raises UserError for an unknown name or a bad
    value.
    """
    from effnet_jax import config, models

    settings["num_classes"] = num_classes
    made = config.get_config(model)
    known = made.model.to_dict()
    if unknown := sorted(settings.keys() - known.keys()):
        raise TypeError(f"unknown settings of a model: {', '.join(unknown)}; see config.model")
    made.model.update(settings)
    return models.build(made.model)


def train(config: Any, workdir: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Trains in a workdir, from `config.init.weights` if set; resumes a run that is in the workdir.

    Returns the final state and the last scores by name. See `train_and_evaluate` in
    training/supervisor.py for the `options` and errors.
    """
    from effnet_jax.training.supervisor import train_and_evaluate
    from effnet_jax.weights import initial

    config, init = initial.prepare(config, workdir)
    return train_and_evaluate(config, workdir, init=init, **options)


def backbone(
    model: str | None = None,
    weights: Any = None,
    strides: Sequence[int] = (4, 8, 16, 32),
    in_channels: int = 3,
    frozen: bool = False,
    dtype: str = "float32",
    origin: str | None = None,
) -> Any:
    """Returns a Flax module that returns feature maps by stride, for other networks.

    Example:
      backbone = effnet_jax.backbone("lite0", weights="lite0.safetensors")
      backbone.channels  # {4: 24, 8: 40, 16: 112, 32: 320}
      variables = backbone.init(jax.random.key(0), images)  # The weights of the file.
      features = backbone.apply(variables, images)  # {4: [N, H / 4, W / 4, 24], ...}

    Args:
      model: name of the model, such as "b0"; optional with `weights`.
      weights: a source as for `weights.load`, or a `weights.Weights`; None: random.
      strides: the feature maps to return, each the output of the last block with that stride.
      in_channels: channels of the images; if not 3, the first convolution is adapted as in timm.
      frozen: keep the weights, with BatchNorm's statistics, in the collection "frozen" instead of
        "params" and "batch_stats".
      dtype: dtype of the computation, float32 or bfloat16; weights are float32.
      origin: origin of the weights; see `weights.load`.

    Returns:
      A `models.backbone.Backbone`.

    Raises:
      UserError: the network does not have a stride, there is neither model nor weights,
        in_channels is below 1, or `weights.load` raises it.
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
    loaded = weights
    if weights is not None and not isinstance(weights, weights_lib.Weights):
        loaded = weights_lib.load(weights, model, origin)
    elif loaded and (model or origin):
        raise UserError("give model and origin with a source of weights, not with loaded ones")
    config = (loaded.config if loaded else ours.config_of(model)).copy_and_resolve_references()
    with config.unlocked():
        config.dtype = dtype
    made = backbones.make(models.build(config), strides, in_channels=in_channels, frozen=frozen)
    if not loaded:
        return made
    return made.clone(initial=backbones.trained(made, loaded.variables))
