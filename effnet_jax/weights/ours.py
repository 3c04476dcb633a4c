"""Our own weights: released files, whose metadata says what the arrays are of, and workdirs."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as default
from effnet_jax.errors import UserError
from effnet_jax.weights.names import Names

KEY, VERSION = "effnet_jax", 1  # Of the metadata in a file.


def _clean(names: Iterable[str], weights: str) -> dict[str, str]:
    return {name: name for name in names}


NAMES = Names(r"(params|batch_stats)/.+", lambda array: array.name, {}, _clean)


class Facts(NamedTuple):
    """What a source says of its weights beside the arrays; None where it doesn't.

    Attributes:
      config: `config.model` of the network ...
      model: ... or its name.
      origin: one of `origins.ORIGINS`.
      preprocess: values of a Preprocess, or some of them.
      classes: as for `weights.load`.
    """

    config: ConfigDict | None = None
    model: str | None = None
    origin: str | None = None
    preprocess: dict[str, Any] | None = None
    classes: str | tuple[str, ...] | None = None


def config_of(model: str) -> ConfigDict:
    """`config.model` of a model by name, for ImageNet's 1000 classes."""
    config = default.get_config(model).model.unlock()
    config.num_classes = 1000
    return config


def to_metadata(
    config: ConfigDict, preprocess: dict[str, Any], classes: tuple[str, ...], origin: str
) -> dict[str, str]:
    """What a file carries beside its arrays: one text, as several come in an order by chance."""
    content = {
        "format_version": VERSION,
        "architecture": config.to_dict(),
        "preprocess": preprocess,
        "classes": classes,
        "origin": origin,
    }
    return {KEY: json.dumps(content)}


def from_metadata(metadata: dict[str, str], where: str) -> Facts | None:
    """What `to_metadata` wrote; None where the metadata isn't ours."""
    if KEY not in metadata:
        return None
    try:
        content = json.loads(metadata[KEY])
        if content["format_version"] > VERSION:
            raise UserError(
                f"{where} has format version {content['format_version']}, and this release knows "
                f"{VERSION}; update effnet_jax"
            )
        # A key that is newer than the file has its default.
        config = default.get_config().model
        config.update(content["architecture"])
        return Facts(
            config=config,
            origin=content["origin"],
            preprocess=content["preprocess"],
            classes=tuple(content["classes"]),
        )
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} has metadata that this program didn't write: {error}") from None


def find(path: pathlib.Path) -> tuple[pathlib.Path, int | None] | None:
    """The workdir and the step, None for the newest, of a workdir or one of its checkpoints."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return (path, None) if (path / "checkpoints").is_dir() else None


def read_workdir(
    workdir: pathlib.Path, step: int | None, weights: str
) -> tuple[dict[str, np.ndarray], Facts]:
    """A checkpoint's arrays by name, and what its run says of them."""
    # Orbax takes seconds to import, which a file of weights shall not cost.
    import jax

    from effnet_jax import config as config_lib
    from effnet_jax import models, parallel
    from effnet_jax.checkpoint import Checkpoints
    from effnet_jax.data.preprocess import Preprocess
    from effnet_jax.run import files
    from effnet_jax.trees import path_name

    config = config_lib.load(workdir)
    model = models.build(config.model)
    resolution = model.architecture.resolution
    shapes = jax.eval_shape(lambda: models.init_variables(model, resolution, jax.random.key(0)))
    shapes = {key: shapes[key] for key in ("params", "batch_stats")}
    wanted = {"ema": shapes} if weights == "ema" else shapes
    with Checkpoints(workdir, config.checkpoint, read_only=True) as checkpoints:
        state = checkpoints.restore(wanted, parallel.replicated(parallel.data_mesh()), step)
    if state is None:
        raise UserError(f"no checkpoint in {workdir} yet")
    state = jax.device_get(state["ema"] if weights == "ema" else state)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {path_name(path): leaf for path, leaf in leaves}, Facts(
        config=config.model,
        origin="ours",
        preprocess=Preprocess.from_config(config.preprocess, resolution).to_dict(),
        classes=files.read_classes(workdir),
    )
