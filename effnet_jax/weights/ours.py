"""Our own weights: released files, whose metadata says what the arrays are of, and workdirs."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import default
from effnet_jax.errors import UserError
from effnet_jax.weights.names import Names

VERSION = "1"


def _clean(names: Iterable[str], weights: str) -> dict[str, str]:
    return {name: name for name in names}


NAMES = Names(lambda array: array.name, {}, _clean)


def config_of(model: str) -> ConfigDict:
    """`config.model` of a model by name, for ImageNet's 1000 classes."""
    config = default.get_config(model).model.unlock()
    config.num_classes = 1000
    return config


def to_metadata(
    config: ConfigDict, preprocess: dict[str, Any], classes: tuple[str, ...], origin: str
) -> dict[str, str]:
    """The texts that a file carries beside its arrays."""
    return {
        "format_version": VERSION,
        "architecture": json.dumps(config.to_dict()),
        "preprocess": json.dumps(preprocess),
        "classes": json.dumps(classes),
        "origin": origin,
    }


def from_metadata(metadata: dict[str, str], where: str) -> dict[str, Any] | None:
    """config, preprocess, classes and origin; None where the metadata isn't ours."""
    if not {"format_version", "architecture", "preprocess"} <= metadata.keys():
        return None
    if metadata["format_version"] != VERSION:
        raise UserError(
            f"{where} has format version {metadata['format_version']}, and this release knows "
            f"{VERSION}; update effnet_jax"
        )
    try:
        # A key that is newer than the file has its default.
        config = default.get_config().model.unlock()
        with config.ignore_type():
            config.update(json.loads(metadata["architecture"]))
        preprocess = json.loads(metadata["preprocess"])
        preprocess |= {key: tuple(preprocess[key]) for key in ("mean", "std")}
        classes = tuple(json.loads(metadata["classes"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} has metadata that this program didn't write: {error}") from None
    return {
        "config": config,
        "preprocess": preprocess,
        "classes": classes,
        "origin": metadata["origin"],
    }


def find(path: pathlib.Path) -> tuple[pathlib.Path, int | None] | None:
    """The workdir and the step, None for the newest, of a workdir or one of its checkpoints."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return (path, None) if (path / "checkpoints").is_dir() else None


def read_workdir(
    workdir: pathlib.Path, step: int | None, weights: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A checkpoint's arrays by name, and what `from_metadata` gives of a file."""
    # Orbax takes seconds to import, which a file of weights shall not cost.
    import jax

    from effnet_jax import models, parallel, records
    from effnet_jax.checkpoint import Checkpoints
    from effnet_jax.trees import path_name
    from effnet_jax.weights.preprocessing import of_config

    config = records.read_config(workdir)
    model = models.build(config.model)
    resolution = model.architecture.resolution
    shapes = jax.eval_shape(lambda: models.init_variables(model, resolution, jax.random.key(0)))
    shapes = {key: shapes[key] for key in ("params", "batch_stats")}
    wanted = {"ema": shapes} if weights == "ema" else shapes
    with Checkpoints(workdir, config.checkpoint, True, records.say) as checkpoints:
        state = checkpoints.restore(wanted, parallel.replicated(parallel.data_mesh()), step)
    if state is None:
        raise UserError(f"no checkpoint in {workdir} yet")
    state = jax.device_get(state["ema"] if weights == "ema" else state)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {path_name(path): leaf for path, leaf in leaves}, {
        "config": config.model,
        "preprocess": of_config(config.preprocess, resolution),
        "classes": records.read_classes(workdir),
        "origin": "ours",
    }
