"""Progressive learning (arXiv 2104.00298): stages, each with its own resolution and regularisation.

A stage is the run's config with some values replaced, on which no parameter's shape depends.
"""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
from ml_collections import ConfigDict

from effnet_jax import config as config_lib
from effnet_jax import models
from effnet_jax.errors import UserError
from effnet_jax.training import freezing
from effnet_jax.training import optimizer as optimizers


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A part of a run: the steps first + 1 to last."""

    number: int  # From 1.
    start_epoch: float
    end_epoch: float
    first: int
    last: int
    config: ConfigDict  # Whole, as it is in this stage.
    model: nn.Module

    @property
    def resolution(self) -> int:
        """Of the training images, in pixels."""
        return self.model.architecture.resolution


def start_epoch(index: int, count: int, epochs: float) -> float:
    """Where stage `index`, from 0, of `count` equally long ones begins.

    Whole epochs, as in google/automl efficientnetv2/main_tf2.py, unless stages outnumber epochs.
    """
    exact = index * epochs / count
    return math.floor(exact) if epochs >= count else exact


def largest(config: ConfigDict) -> ConfigDict:
    """The config as it is in the stage with the largest images; of several such, in the last."""
    stages = config_lib.stages(config)
    return max(reversed(stages), key=lambda stage: models.coefficients(stage.model).resolution)


def stages(config: ConfigDict, examples: int) -> list[Stage]:
    """A run's stages, one where `config.progressive` has none; UserError if one has no step.

    For the whole config, with the number of classes known, and the records in an epoch.
    """
    each = config_lib.stages(config)
    examples = optimizers.epoch_examples(config, examples)
    count, epochs = len(each), optimizers.epochs(config, examples)
    starts = [start_epoch(index, count, epochs) for index in range(count)]
    ends = [optimizers.steps(epoch, config.batch_size, examples) for epoch in starts]
    total = optimizers.duration(config, "epochs", examples)
    if freezing.is_head_alone(config.fine_tune):
        ends = [0, optimizers.head_steps(config, examples)]
        starts = [0, ends[1] * config.batch_size / examples]
    starts, ends = [*starts, epochs], [*ends, total]
    result = []
    for index, stage in enumerate(each):
        if count > 1 and ends[index] == ends[index + 1]:
            raise UserError(
                f"config.{optimizers.length(config)} is {total} steps, too few for the {count} "
                "stages of config.progressive; raise it, or give fewer"
            )
        span = starts[index], starts[index + 1], ends[index], ends[index + 1]
        result.append(Stage(index + 1, *span, stage, models.build(stage.model)))
    return result


def after(stages: Sequence[Stage], step: int) -> Sequence[Stage]:
    """The stages that the steps after `step` belong to; the last at the end of a run."""
    return [stage for stage in stages if stage.last > step] or stages[-1:]


def steps_left(stages: Sequence[Stage], step: int) -> float:
    """How many steps as long as `step` the rest of the run takes, if a pixel takes as long."""
    pixels = after(stages, step - 1)[0].resolution ** 2
    return sum(
        max(0, stage.last - max(step, stage.first)) * stage.resolution**2 / pixels
        for stage in stages
    )


def describe(stages: Sequence[Stage]) -> list[str]:
    """A line about each stage, for the person who starts a run; none where there is only one."""
    lines = []
    for stage in stages if len(stages) > 1 else ():
        augment, span = stage.config.augment, f"stage {stage.number} to epoch "
        span += f"{round(stage.end_epoch, 2):g}, step {stage.last:,}: "
        if freezing.is_head_alone(stages[0].config.fine_tune):
            what = "the classifier alone" if stage.number == 1 else "all that is not frozen"
            lines.append(f"{span}{what}")
            continue
        magnitude = f", magnitude {augment.randaugment_magnitude:.4g}"
        lines.append(
            f"{span}{stage.resolution} px{magnitude if augment.policy == 'randaugment' else ''}, "
            f"mixup {augment.mixup_alpha:.3g}, cutmix {augment.cutmix_alpha:.3g}, "
            f"dropout {stage.model.dropout:.3g}"
        )
    return lines
