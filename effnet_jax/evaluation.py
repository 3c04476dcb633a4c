"""One evaluation for the training loop and for eval.py: exact over every record."""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from effnet_jax import models, parallel, records
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.data import pipeline, sources
from effnet_jax.data.sources import Source
from effnet_jax.errors import UserError
from effnet_jax.loss import cross_entropy, smooth_targets
from effnet_jax.models.layers import normalize_images

PyTree = Any
Metrics = dict[str, float | int]


def make_eval_step(model: nn.Module, preprocess: ConfigDict) -> Callable[..., dict[str, jax.Array]]:
    """`(params, batch_stats, batch) -> sums` of top1, top5, loss and count over the unmasked."""

    def eval_step(params: PyTree, batch_stats: PyTree, batch: dict[str, jax.Array]):
        images = normalize_images(batch["image"], preprocess.mean, preprocess.std)
        logits, _ = model.apply({"params": params, "batch_stats": batch_stats}, images, train=False)
        labels, mask = batch["label"], batch["mask"]
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
        hits = best == labels[:, None]
        return {
            "top1": (hits[:, 0] * mask).sum(),
            "top5": (hits.any(-1) * mask).sum(),
            "loss": (cross_entropy(logits, smooth_targets(labels, logits.shape[-1])) * mask).sum(),
            "count": mask.sum(),
        }

    return eval_step


class Evaluator:
    """Evaluates weights on one split, as often as wanted, with one compilation."""

    def __init__(
        self, model: nn.Module, config: ConfigDict, source: Source, resolution: int, mesh: Mesh
    ):
        parallel.check_batch("eval_batch_size", config.eval_batch_size, mesh)
        self._examples = len(source)
        self._mesh = mesh
        self._data = config.data
        host, hosts = jax.process_index(), jax.process_count()
        self._batches = pipeline.eval_batches(source, config, resolution, host, hosts)
        self._step = jax.jit(
            make_eval_step(model, config.preprocess), out_shardings=parallel.replicated(mesh)
        )

    def __call__(
        self,
        params: PyTree,
        batch_stats: PyTree,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Metrics | None:
        """Top-1 and top-5 as fractions, mean cross-entropy (no smoothing), and the count.

        Args:
          params, batch_stats: the weights.
          should_stop: asked at every batch; where it says so the result is None.
        """
        totals = {"top1": 0.0, "top5": 0.0, "loss": 0.0, "count": 0.0}
        for batch in self._batches.read_ahead(self._data):
            if should_stop():
                return None
            sums = self._step(params, batch_stats, parallel.put_batch(batch, self._mesh))
            for key, value in jax.device_get(sums).items():
                totals[key] += float(np.asarray(value, np.float64))
        count = round(totals["count"])
        if count != self._examples:
            raise AssertionError(f"evaluated {count} of {self._examples} images")
        means = {key: totals[key] / count for key in ("top1", "top5", "loss")}
        return {**means, "count": count}


def evaluate_workdir(
    workdir: str,
    step: int | None = None,
    weights: str = "ema",
    data_dir: str | None = None,
    csv: str | None = None,
) -> dict[str, float | int | str]:
    """Evaluates a checkpoint on the evaluation split that its run had.

    Args:
      workdir: of the run; its config is in it.
      step: which checkpoint; by default the newest that can be read.
      weights: "ema" or "raw".
      data_dir: where the data is, if not where the config says.
      csv: a file under results/ to add a row to: the result, the model, the run and the machine.

    Returns:
      top1, top5, loss, count, step, weights.
    """
    config = records.read_config(workdir)
    if data_dir is not None:
        config.data.data_dir = data_dir
    mesh = parallel.data_mesh()
    source = sources.open_source(config.data, config.data.eval_split)
    sources.check_classes(source.classes, records.read_classes(workdir), config.data.eval_split)
    model = models.build(config.model)
    resolution = model.architecture.resolution
    evaluator = Evaluator(model, config, source, resolution, mesh)

    shapes = jax.eval_shape(lambda: models.init_variables(model, resolution, jax.random.key(0)))
    shapes = {name: shapes[name] for name in ("params", "batch_stats")}
    wanted = {"step": jax.ShapeDtypeStruct((), np.int32), **shapes, "ema": shapes}
    with Checkpoints(workdir, config.checkpoint, read_only=True) as checkpoints:
        state = checkpoints.restore(wanted, parallel.replicated(mesh), step, records.say)
    if state is None:
        raise UserError(f"no checkpoint in {workdir} yet")
    chosen = state["ema"] if weights == "ema" else state
    result = evaluator(chosen["params"], chosen["batch_stats"])
    result = {**result, "step": int(state["step"]), "weights": weights}
    if csv is not None:
        scaled = models.coefficients(config.model)
        row = {
            "data": f"{config.data.name}/{config.data.eval_split}",
            "phi": config.model.phi,
            "width": scaled.width,
            "depth": scaled.depth,
            "resolution": scaled.resolution,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
            "batch_size": config.batch_size,
            "epochs": config.epochs,
            "seed": config.seed,
            **result,
            **records.describe_machine(),
        }
        records.append_csv(pathlib.Path(csv), [row])
    return result
