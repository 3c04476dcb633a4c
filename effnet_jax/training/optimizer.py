"""Learning rate, optimizer, per-parameter rules, and the decay of the averages."""

import math
import operator
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from effnet_jax.config import DURATIONS, head_key
from effnet_jax.errors import UserError
from effnet_jax.training import freezing
from effnet_jax.trees import path_name

PyTree = Any


def epoch_examples(config: ConfigDict, examples: int) -> int:
    """How many of the training records `config.epoch_steps` counts as an epoch."""
    whole = config.epoch_steps == "whole"
    return examples // config.batch_size * config.batch_size if whole else examples


def steps(epochs: float, batch_size: int, examples: int) -> int:
    """A duration in epochs as whole steps, rounded down as in the reference."""
    return int(epochs * examples / batch_size)


def duration(config: ConfigDict, key: str, examples: int) -> int:
    """A duration in `config.DURATIONS`, by its key in epochs, as whole steps.

    For the whole config, and the records in an epoch.
    """
    in_epochs, in_steps = (operator.attrgetter(name)(config) for name in (key, DURATIONS[key]))
    return in_steps or steps(in_epochs or 0, config.batch_size, examples)


def epochs(config: ConfigDict, examples: int) -> float:
    """The length of a run in epochs."""
    in_steps = config.steps
    return config.epochs if in_steps is None else in_steps * config.batch_size / examples


def length(config: ConfigDict) -> str:
    """The key and value that set the length of a run, for a message."""
    return f"epochs={config.epochs:g}" if config.steps is None else f"steps={config.steps}"


def head_steps(config: ConfigDict, examples: int) -> int:
    """The steps at first that train the classifier alone; raises UserError if all or none would."""
    fine_tune, total = config.fine_tune, duration(config, "epochs", examples)
    if not (given := fine_tune.head_epochs or fine_tune.head_steps):
        return 0
    head = duration(config, "fine_tune.head_epochs", examples)
    if 0 < head < total:
        return head
    remedy = "give more, or 0"
    if head:
        remedy = (
            "and the other parameters would never be trained. Give less, or train the classifier "
            "alone with config.fine_tune.freeze=stem..head"
        )
    raise UserError(
        f"{head_key(config)}={given:g} is {head} of the {total} steps of config.{length(config)}; "
        f"{remedy}"
    )


def warnings(config: ConfigDict, examples: int) -> list[str]:
    """A line for each stage of the schedule that is mostly warm-up, and hardly at its rate."""
    total, head = duration(config, "epochs", examples), head_steps(config, examples)
    warmup = duration(config, "schedule.warmup_epochs", examples)
    spans = {"the classifier alone": head, "the rest": total - head} if head else {"the run": total}
    return [
        f"warning: the learning rate rises for {warmup} steps, and {what} has {span}; shorten the "
        "warm-up (config.schedule.warmup_steps or warmup_epochs)"
        for what, span in spans.items()
        if warmup > span / 2
    ]


def average_decay(config: ConfigDict, examples: int) -> float:
    """The decay of the averages, for the whole config and the records in an epoch."""
    if config.ema.fraction is None:
        return config.ema.decay
    total = duration(config, "epochs", epoch_examples(config, examples))
    return 1 - 1 / max(2, config.ema.fraction * total)


def learning_rate(config: ConfigDict, examples: int) -> optax.Schedule:
    """The learning rate by step, for the whole config and the records in an epoch.

    Where the classifier is trained alone at first, both stages have a warm-up and a decay of their
    own, as arXiv 2202.10054 trains the second from what the first has ended with.
    """
    examples = epoch_examples(config, examples)
    total, head = duration(config, "epochs", examples), head_steps(config, examples)
    if not head:
        return _stage_rate(config, examples, total)
    rates = [_stage_rate(config, examples, count) for count in (head, total - head)]
    return optax.join_schedules(rates, [head])


def _stage_rate(config: ConfigDict, examples: int, total: int) -> optax.Schedule:
    """The learning rate by step of a stage that has `total` steps.

    Linear warm-up from 0, and a decay that counts from step 0, so that it has begun before warm-up
    ends. Source: tensorflow/tpu models/official/efficientnet/utils.py, build_learning_rate.
    """
    schedule, total = config.schedule, max(1, total)
    peak = config.optimizer[config.optimizer.name].learning_rate * config.batch_size / 256
    warmup = duration(config, "schedule.warmup_epochs", examples)
    decay_steps = schedule.decay_steps or schedule.decay_epochs * examples / config.batch_size
    least = peak * schedule.min_rate

    def rate(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if schedule.name == "staircase":
            # Not rate ** count: float32 rounds 0.97, and the power multiplies that error.
            decays = jnp.floor(step / decay_steps)
            decayed = peak * jnp.exp(math.log(schedule.decay_rate) * decays)
        elif schedule.name == "cosine":
            decayed = peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total, 1)))
        else:
            decayed = jnp.asarray(peak, jnp.float32)
        if least:
            cosine = schedule.name == "cosine"  # Scaled, so that it ends there.
            decayed = least + decayed * (1 - schedule.min_rate) if cosine else decayed
            decayed = jnp.maximum(decayed, least)
        return jnp.where(step < warmup, peak * step / max(1, warmup), decayed)

    return rate


def ema_decay(decay: float, updates: jax.Array) -> jax.Array:
    """min(decay, (1 + n) / (10 + n)) at update n, as tf.train.ExponentialMovingAverage."""
    updates = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(decay, (1 + updates) / (10 + updates))


def multipliers(rules: Sequence[tuple[str, float]], params: PyTree, what: str) -> PyTree:
    """The multiplier of each parameter: that of the first rule that matches its whole name.

    Rules are (regular expression over the slash-joined name, multiplier); `params` may be shapes;
    `what` is the config key. Raises UserError for a parameter that no rule covers, or a rule that
    matches nothing.
    """

    def first_match(path: tuple, _: Any) -> int:
        matches = (re.fullmatch(pattern, path_name(path)) for pattern, _ in rules)
        return next((index for index, match in enumerate(matches) if match), len(rules))

    chosen = jax.tree.map_with_path(first_match, params)
    leaves = jax.tree.leaves_with_path(chosen)
    if uncovered := [path_name(path) for path, index in leaves if index == len(rules)]:
        shown = ", ".join(uncovered[:5])
        raise UserError(
            f"{what}: no rule covers {len(uncovered)} parameters ({shown} ...); "
            "end the rules with ('.*', 1.0)"
        )
    if unused := set(range(len(rules) - 1)).difference(jax.tree.leaves(chosen)):
        pattern = rules[min(unused)][0]
        raise UserError(f"{what}: rule {pattern!r} is the first match of no parameter")
    return jax.tree.map(lambda index: float(rules[index][1]), chosen)


def build_optimizer(
    config: ConfigDict,
    schedule: optax.Schedule,
    params: PyTree,
    fine_tune: ConfigDict | None = None,
) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer` and `config.fine_tune`.

    Its state is for the parameters that are trained at any time, and it updates those that are
    trained now: without `freezing.frozen` and `freezing.frozen_now`.

    For rmsprop and sgd the weight decay is an L2 term of the loss, 0.5 * rate * sum(w**2), that
    goes through the optimizer with the gradient; for the others it is decoupled. `params` may be
    shapes.
    """
    own = config[config.name]
    decays, rates = (
        multipliers(config[rules], params, f"config.optimizer.{rules}")
        for rules in ("weight_decay_rules", "learning_rate_rules")
    )
    never = frozenset()
    if fine_tune:
        rates = jax.tree.map(operator.mul, rates, freezing.rates(fine_tune, params))
        never, now = freezing.frozen(fine_tune, params), freezing.frozen_now(fine_tune, params)
        decays, rates = (freezing.split(tree, now)[0] for tree in (decays, rates))
    decay = optax.stateless(
        lambda updates, params: jax.tree.map(
            lambda u, p, factor: u + own.weight_decay * factor * p, updates, params, decays
        )
    )
    scale = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, factor: factor * u, updates, rates)
    )
    if config.name == "rmsprop":
        # TensorFlow's and Keras's: epsilon is inside the root, and the learning rate is inside the
        # momentum, which matters whenever the rate changes.
        start = {"eps_in_sqrt": True, "initial_scale": own.accumulator}
        rmsprop = optax.rmsprop(schedule, own.decay, own.epsilon, momentum=own.momentum, **start)
        made = optax.chain(decay, rmsprop, scale)
    elif config.name == "sgd":
        made = optax.chain(decay, optax.sgd(schedule, own.momentum, own.nesterov), scale)
    else:
        is_lion = config.name == "lion"
        lion, adam = optax.scale_by_lion, optax.scale_by_adam
        direction = lion(own.b1, own.b2) if is_lion else adam(own.b1, own.b2, own.epsilon)
        made = optax.chain(direction, decay, optax.scale_by_learning_rate(schedule), scale)

    def init(params: PyTree) -> PyTree:
        return made.init(freezing.split(params, never)[0] if never else params)

    def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        if config.clip_norm is not None:  # Outside the chain: it can be set for a run that resumes.
            clip = optax.clip_by_global_norm(config.clip_norm)
            grads, _ = clip.update(grads, optax.EmptyState())
        return made.update(grads, state, params)

    return optax.GradientTransformation(init, update)
