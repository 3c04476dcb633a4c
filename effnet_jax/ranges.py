"""Which numbers make sense in a config, checked before anything is computed."""

from ml_collections import ConfigDict

from effnet_jax.errors import UserError

ANY = float("inf")
# Key: smallest and largest value, both allowed.
RANGES = {
    "seed": (0, 2**32 - 2),
    "batch_size": (1, ANY),
    "accumulation_steps": (1, ANY),
    "eval_batch_size": (1, ANY),
    "epochs": (0, ANY),
    "log_steps": (1, ANY),
    "eval_epochs": (0, ANY),
    "model.batch_norm_momentum": (0, 1),
    "model.batch_norm_epsilon": (0, 1),
    "model.batch_norm_group": (1, ANY),
    "data.holdout": (0.001, 0.5),
    "data.check_images": (0, ANY),
    "data.threads": (1, 1024),
    "data.processes": (0, 1024),
    "data.prefetch_batches": (1, 1024),
    "data.prefetch_gib": (0.01, ANY),
    "augment.randaugment_layers": (0, 16),
    "augment.randaugment_magnitude": (0, 30),
    "augment.erase_probability": (0, 1),
    "augment.mixup_alpha": (0, ANY),
    "augment.cutmix_alpha": (0, ANY),
    "loss.label_smoothing": (0, 0.999),
    "optimizer.rmsprop.learning_rate": (0, ANY),
    "optimizer.rmsprop.decay": (0, 1),
    "optimizer.rmsprop.momentum": (0, 1),
    "optimizer.rmsprop.epsilon": (0, ANY),
    "optimizer.rmsprop.weight_decay": (0, ANY),
    "optimizer.sgd.learning_rate": (0, ANY),
    "optimizer.sgd.momentum": (0, 1),
    "optimizer.sgd.weight_decay": (0, ANY),
    "optimizer.adamw.learning_rate": (0, ANY),
    "optimizer.adamw.b1": (0, 1),
    "optimizer.adamw.b2": (0, 1),
    "optimizer.adamw.epsilon": (0, ANY),
    "optimizer.adamw.weight_decay": (0, ANY),
    "schedule.warmup_epochs": (0, ANY),
    "schedule.decay_rate": (1e-9, 1),
    "schedule.decay_epochs": (1e-9, ANY),
    "ema.decay": (0, 1),
    "checkpoint.save_epochs": (0, ANY),
    "nonfinite.max_rollbacks": (0, ANY),
    "hosts.start_seconds": (1, ANY),
    "hosts.stall_seconds": (1, ANY),
    "hosts.lost_seconds": (3, 150),  # Below hosts.HEARTBEAT_SECONDS.
}


def check_ranges(config: ConfigDict) -> None:
    """Raises a UserError that names the first key whose value can't be meant."""
    for key, (low, high) in RANGES.items():
        value = config
        for part in key.split("."):
            value = value[part]
        if not low <= value <= high:
            most = f" and at most {high}" if high != ANY else ""
            raise UserError(f"config.{key} must be at least {low}{most}; got {value}")


def check_interval(key: str, value: object, high: float = ANY) -> None:
    """Raises a UserError unless `value`, of `config.KEY`, is a range of numbers in (0, high]."""
    try:
        first, last = map(float, value)
    except (TypeError, ValueError):
        raise UserError(
            f"config.{key} must be two numbers, as in '(0.1, 1.0)'; got {value}"
        ) from None
    if not 0 < first <= last <= high:
        most = f" and at most {high}" if high != ANY else ""
        raise UserError(f"config.{key} must be a range above 0{most}; got {value}")
