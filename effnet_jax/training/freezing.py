"""What is trained: frozen parameters and BatchNorms, and learning rates by depth.

Frozen parameters have no gradient, optimizer state or weight decay, and their averages are their
values. `config.fine_tune` says which; where `is_head_alone`, all but the classifier are.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

import flax.traverse_util
import jax
from ml_collections import ConfigDict

from effnet_jax.errors import UserError, check_choice, near

PyTree = Any
HEAD = "classifier"


def list_parts(params: PyTree) -> list[str]:
    """The parts of a network in order: stem, stage1, ..., head where there is one, classifier."""
    stages = sorted((name for name in params if name.startswith("stage")), key=lambda n: int(n[5:]))
    return [name for name in ("stem", *stages, "head", HEAD) if name in params]


def _matches(rule: str, parts: list[str], names: Collection[str]) -> set[str]:
    """The parameters of a part, of a range of parts ("stem..stage4"), or that match a regex.

    Raises UserError where there are none.
    """
    key, chosen = "config.fine_tune.freeze", [rule] if rule in parts else []
    if re.fullmatch(r"\w+\.\.\w+", rule):
        first, last = (
            parts.index(check_choice(f"part in {key}", part, parts)) for part in rule.split("..")
        )
        if first > last:
            raise UserError(f"{key}: {rule!r} is reversed; give {parts[last]}..{parts[first]}")
        chosen = parts[first : last + 1]
    if chosen:
        return {name for name in names if name.partition("/")[0] in chosen}
    try:
        found = {name for name in names if re.fullmatch(rule, name)}
    except re.error as error:
        raise UserError(f"{key}: bad regular expression {rule!r}: {error}") from None
    if not found and "," in rule:
        raise UserError(
            f"{key}: {rule!r} matches no parameter; separate parts by spaces, not commas"
        )
    if not found:
        raise UserError(
            f"{key}: {rule!r} matches no parameter; did you mean: "
            f"{near(rule.partition('/')[0], parts, 1)}? The parts are {', '.join(parts)}, and a "
            "regular expression has to match a whole name, such as stage1/block1/expand/kernel"
        )
    return found


def frozen(config: ConfigDict, params: PyTree) -> frozenset[str]:
    """The names of the parameters that `config.fine_tune.freeze` freezes for the whole run.

    `params` may be shapes. Raises UserError for a rule that matches nothing, or where all are
    frozen.
    """
    names = flatten(params).keys()
    result = set()
    for rule in config.freeze.split():
        result |= _matches(rule, list_parts(params), names)
    if len(result) == len(names):
        raise UserError("config.fine_tune.freeze matches every parameter: none would be trained")
    return frozenset(result)


def is_head_alone(config: ConfigDict) -> bool:
    """Whether `config.fine_tune` is that of a stage that trains the classifier alone."""
    return bool(config.head_epochs or config.head_steps) and not config.head_done


def frozen_now(config: ConfigDict, params: PyTree) -> frozenset[str]:
    """As `frozen`; in a stage that trains the classifier alone, all others too."""
    result = frozen(config, params)
    if is_head_alone(config):
        others = {name for name in flatten(params) if name.partition("/")[0] != HEAD}
        if f"{HEAD}/kernel" in result:
            raise UserError(
                "config.fine_tune.freeze freezes the classifier, which is to be trained alone at "
                "first (head_epochs or head_steps); leave one of them out"
            )
        return result | others
    return result


def frozen_norms(config: ConfigDict, params: PyTree) -> tuple[str, ...]:
    """The parts of a network whose BatchNorms use and keep their running statistics."""
    parts = [part for part in list_parts(params) if part != HEAD]
    if is_head_alone(config) or config.batch_norm == "frozen":
        return tuple(parts)
    if config.batch_norm == "train":
        return ()
    names, still = flatten(params).keys(), frozen(config, params)
    below = [p for p in parts if all(n in still for n in names if n.partition("/")[0] == p)]
    if not below:
        raise UserError(
            "config.fine_tune.batch_norm='frozen_below' is for parts whose parameters are all "
            "frozen, and there is none; freeze one, as in --config.fine_tune.freeze=stem..stage4"
        )
    return tuple(below)


def flatten(tree: PyTree) -> dict[str, Any]:
    """A nested dict by slash-joined names."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def split(tree: PyTree, names: Collection[str]) -> tuple[PyTree, PyTree]:
    """A nested dict in two: without the leaves of these names, and those alone."""
    flat = flatten(tree)
    parts = ({n: x for n, x in flat.items() if (n in names) == here} for here in (False, True))
    without, those = (flax.traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return without, those


def merge(*trees: PyTree) -> PyTree:
    """What `split` has split."""
    flat = {name: leaf for tree in trees for name, leaf in flatten(tree).items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def average(old: PyTree, new: PyTree, decay: jax.Array, still: Collection[str]) -> PyTree:
    """decay * old + (1 - decay) * new; leaves named in `still` are those of `old`, bit by bit."""
    moving, kept = split(old, still)
    moved = jax.tree.map(lambda x, y: decay * x + (1 - decay) * y, moving, split(new, still)[0])
    return merge(moved, kept)


def select(state: PyTree, like: PyTree, names: Collection[str]) -> PyTree:
    """An optimizer's state for parameters `like`, without those of these names."""
    fits = _is_like(like)
    return jax.tree.map(lambda x: split(x, names)[0] if fits(x) else x, state, is_leaf=fits)


def put_back(new: PyTree, state: PyTree, like: PyTree, names: Collection[str]) -> PyTree:
    """The optimizer's `state` with a `new` one of what `select` has left."""
    fits = _is_like(like)

    def put(old: PyTree, changed: PyTree) -> PyTree:
        return merge(changed, split(old, names)[1]) if fits(old) else changed

    return jax.tree.map(put, state, new, is_leaf=fits)


def _is_like(tree: PyTree) -> Callable[[PyTree], bool]:
    structure = jax.tree.structure(tree)
    return lambda x: jax.tree.structure(x) == structure


def rates(config: ConfigDict, params: PyTree) -> PyTree:
    """The factor of each parameter's learning rate: `head_rate`, and `layer_decay` by depth.

    The layers are the stem, each block, the head and the classifier; a layer's factor is the next
    one's times `layer_decay`.
    """
    parts = list_parts(params)

    def layer(name: str) -> tuple[int, int]:
        part, inside = name.split("/")[:2]
        number = int(inside.removeprefix("block")) if part.startswith("stage") else 0
        return parts.index(part), number

    layers = sorted({layer(name) for name in flatten(params)})
    flat = {
        name: config.layer_decay ** (len(layers) - 1 - layers.index(layer(name)))
        * (config.head_rate if name.startswith(f"{HEAD}/") else 1.0)
        for name in flatten(params)
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def describe(config: ConfigDict, params: PyTree) -> list[str]:
    """A line about what is frozen, for the start of a run; none where nothing is."""
    still, norms = frozen(config, params), frozen_norms(config, params)
    if not (still or norms):
        return []
    sizes = {name: leaf.size for name, leaf in flatten(params).items()}
    trained = sum(size for name, size in sizes.items() if name not in still)
    line = f"training {trained:,} of {sum(sizes.values()):,} parameters"
    if is_head_alone(config):
        return [f"{line}, at first the {HEAD} alone, with the statistics of BatchNorm kept"]
    if norms:
        return [f"{line}; BatchNorm keeps its statistics in {', '.join(norms)}"]
    keep = "config.fine_tune.batch_norm=frozen keeps them"
    return [f"{line}; the statistics of BatchNorm move in frozen parts too: {keep}"]
