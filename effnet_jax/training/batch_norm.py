"""Over which examples of a batch BatchNorm takes its statistics in training."""

from ml_collections import ConfigDict

from effnet_jax.errors import UserError, check_choice

SCOPES = ("global", "group", "reference")


def reference_shards(shards: int) -> int:
    """Shards that share statistics in the reference, where a shard is one core: one device here.

    Up to 8 each is alone, then groups of max(8, shards / 8). Source: tensorflow/tpu
    models/official/efficientnet/utils.py, TpuBatchNormalization.

    Raises:
      UserError: there is no whole number of groups.
    """
    together = 1 if shards <= 8 else max(8, shards // 8)
    if shards % together:
        raise UserError(
            f"config.model.batch_norm_scope='reference' has groups of {together} devices, and "
            f"{shards} devices do not divide into them; use a multiple of 8 devices, or the scope "
            "'group' or 'global'"
        )
    return together


def examples_in_group(scope: str, group: int, examples: int, devices: int) -> int:
    """How many examples, one after the other, share BatchNorm's statistics.

    Args:
      scope: "global": all; "group": `group`; "reference": those of `reference_shards` devices.
      group: `config.model.batch_norm_group`.
      examples: computed at a time on all devices: the batch, over the steps of accumulation.
      devices: that these divide evenly over.

    Raises:
      UserError: the groups aren't whole, or are neither within a device nor whole devices.
    """
    check_choice("config.model.batch_norm_scope", scope, SCOPES)
    each = examples // devices
    if scope == "global":
        return examples
    if scope == "reference":
        return reference_shards(devices) * each
    if examples % group or (each % group and group % each):
        sizes = [size for size in range(1, examples + 1) if _fits(size, examples, each)]
        nearest = min(sizes, key=lambda size: abs(size - group))
        raise UserError(
            f"config.model.batch_norm_group={group} does not divide the {each} examples that each "
            f"of {devices} devices has at a time, and is no whole number of devices that divides "
            f"all {examples}; the nearest that does is {nearest}"
        )
    return group


def _fits(group: int, examples: int, each: int) -> bool:
    return examples % group == 0 and (each % group == 0 or group % each == 0)


def group_of(config: ConfigDict, devices: int) -> int:
    """`examples_in_group` of a whole config."""
    model, examples = config.model, config.batch_size // config.accumulation_steps
    return examples_in_group(model.batch_norm_scope, model.batch_norm_group, examples, devices)


def describe(config: ConfigDict, devices: int) -> str:
    """The scope that a config comes to, as a line for the start of a run; errors as above."""
    examples, steps = config.batch_size // config.accumulation_steps, config.accumulation_steps
    part = f" at a time, in {steps} parts of a batch" if steps > 1 else ""
    rule = {"global": "all", "group": "as set", "reference": "reference rule"}
    return (
        f"BatchNorm over groups of {group_of(config, devices)} of {examples} examples{part} "
        f"({rule[config.model.batch_norm_scope]}, {devices} devices)"
    )
