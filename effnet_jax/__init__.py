"""EfficientNet (arXiv 1905.11946) in JAX: compound scaling, sharded training, exact resume."""

from typing import Any

__version__ = "0.1.0"
# Each function imports what it needs, so that importing the package costs nothing.


def load(
    source: str,
    model: str | None = None,
    origin: str | None = None,
    classes: str | None = None,
    num_classes: int | None = None,
) -> tuple[Any, dict[str, Any], Any]:
    """A network with its weights, ready to use.

    As in:
      model, variables, preprocess = effnet_jax.load("lite0.safetensors")
      logits, features = model.apply(variables, preprocess("cat.jpg"), train=False)

    Args:
      source: a file of weights, the workdir of a run, or hf://ORG/NAME; see `weights.load`.
      model, origin, classes: see `weights.load`, which also returns the classes.
      num_classes: outputs of a new classifier, all 0, in place of the weights' own: for training.

    Returns:
      A `models.network.Network`, its variables on the device, and a `data.preprocess.Preprocess`.
    """
    import jax
    import jax.numpy as jnp

    from effnet_jax import models, weights
    from effnet_jax.data.preprocess import Preprocess

    found = weights.load(source, model, origin, classes)
    variables = jax.device_put(found.variables)
    config = found.config.copy_and_resolve_references()
    if num_classes is not None:
        config.num_classes = num_classes
        old = variables["params"].pop("classifier")
        new = {name: jnp.zeros((*array.shape[:-1], num_classes)) for name, array in old.items()}
        variables["params"]["classifier"] = new
    return models.build(config), variables, Preprocess(**found.preprocess)


def create_model(model: str, num_classes: int = 1000, **settings: Any) -> Any:
    """A network by its name, as in `create_model("b0", num_classes=10)`; a Flax module.

    Its first arrays are `model.init_variables(jax.random.key(0))`. `settings` are other keys of
    `config.model`, such as dtype="bfloat16". Raises UserError for an unknown name or a bad value.
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
    """Trains in a workdir, from `config.init.weights` if they are set; resumes what is there.

    Returns the final state and the last scores by name: see `train_and_evaluate` in
    training/supervisor.py, which also has the `options` and what is raised.
    """
    from effnet_jax.training.supervisor import train_and_evaluate
    from effnet_jax.weights import initial

    config, init = initial.prepare(config, workdir)
    return train_and_evaluate(config, workdir, init=init, **options)
