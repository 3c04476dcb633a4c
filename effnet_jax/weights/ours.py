"""Our own weights: released files, whose metadata describes the arrays, and runs."""

import json
import pathlib
from typing import Any

import flax.traverse_util
import numpy as np
from ml_collections import ConfigDict

from effnet_jax import config as default
from effnet_jax import models
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.errors import UserError, check_choice
from effnet_jax.run import buckets, manifest
from effnet_jax.weights.names import WHICH, Names

KEY, VERSION = "effnet_jax", 1  # Key and version of the metadata in a file.
FOLDER = "checkpoints"  # In a workdir.
NAMES = Names(r"(params|batch_stats)/.+")


def config_of(model: str) -> ConfigDict:
    """Returns `config.model` for a model's name, with ImageNet's 1000 classes."""
    config = default.get_config(model).model.unlock()
    config.num_classes = 1000
    return config


def to_metadata(weights: Any) -> dict[str, str]:
    """Returns a file's metadata, as one text because several are written in a random order."""
    content = {"format_version": VERSION, "architecture": weights.config.to_dict()}
    content |= {key: getattr(weights, key) for key in ("preprocess", "classes", "origin")}
    return {KEY: json.dumps(content)}


def from_metadata(metadata: dict[str, str], where: str) -> dict[str, Any] | None:
    """Returns config, origin, preprocess and classes; None for metadata of other programs."""
    if KEY not in metadata:
        return None
    try:
        content = json.loads(metadata[KEY])
        if content["format_version"] > VERSION:
            raise UserError(
                f"{where} has format version {content['format_version']}, but this release reads "
                f"at most {VERSION}; update effnet_jax"
            )
        config = default.get_config().model  # Keys that are newer than the file keep their default.
        config.update(content["architecture"])
        kept = {key: content[key] for key in ("origin", "preprocess")}
        return {**kept, "config": config, "classes": tuple(content["classes"])}
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} has damaged or foreign metadata: {error}") from None


def is_run(path: pathlib.Path) -> bool:
    """Whether a path is a workdir, a checkpoint in a workdir, or a copy of a checkpoint."""
    if path.parent.name == FOLDER:
        return True
    if buckets.is_bucket(path):
        return any(buckets.exists(path / name) for name in ("classes.json", manifest.NAME))
    return any((path / name).exists() for name in (FOLDER, "classes.json", manifest.NAME))


def read_run(path: pathlib.Path, weights: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of a checkpoint by name, and the facts about them, as `files.read` does.

    Args:
      path: see `is_run`; of a workdir the newest checkpoint is read.
      weights: "ema" or "raw".
    """
    check_choice("weights", weights, WHICH)
    # Imported here because Orbax takes seconds, and files of weights do not need it.
    from effnet_jax import checkpoint

    workdir, step = path, None
    if path.parent.name == FOLDER and path.name.isdigit():
        workdir, step = path.parent.parent, int(path.name)
    found = checkpoint.read_weights(workdir, step, weights)
    if found is None:
        raise UserError(f"no checkpoint in {workdir} yet")
    step, variables, facts = found
    config = default.get_config()
    config.model.update(facts["model"])
    config.preprocess.update(facts["preprocess"])
    resolution = models.coefficients(config.model).resolution
    return flax.traverse_util.flatten_dict(variables, sep="/"), {
        "config": config.model,
        "origin": "ours",
        "preprocess": Preprocess.from_config(config.preprocess, resolution).to_dict(),
        "classes": tuple(facts["classes"]),
        "step": step,
    }
