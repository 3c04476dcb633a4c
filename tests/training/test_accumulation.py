"""BatchNorm's scope, accumulation, layout and rematerialisation, in the compiled step.

One small network for all; every program is compiled once, and what it sends is counted in its text.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from effnet_jax import config as default
from effnet_jax import models, parallel
from effnet_jax.models.baselines import Residual
from effnet_jax.models.mbconv import MBConv
from effnet_jax.models.network import Architecture, Network, Stem
from effnet_jax.planner.program import Collective, collectives
from effnet_jax.training.optimizer import build_optimizer, learning_rate
from effnet_jax.training.state import fresh_state, init_state
from effnet_jax.training.step import make_train_step

BATCH, WIDTH, SIZE, NORMS = 64, 32, 4, 3
SEED = np.uint32(0)


def network() -> Network:
    """Stem and a residual block: three convolutions, each with a BatchNorm."""
    branch = (("conv1", 3, 1, WIDTH), ("conv2", 3, 1, WIDTH))
    block = Residual(
        name="stage1/block1", stride=1, inputs=WIDTH, outputs=WIDTH, survival=1.0, branch=branch
    )
    return Network(Architecture(SIZE, Stem(WIDTH, stride=1), ((block,),), 0, 10, "relu"), 0.0)


@dataclasses.dataclass
class Program:
    """A compiled step of 64 images over 8 devices, and what goes into it."""

    step: Any
    state: Any
    mesh: Any
    sent: list[Collective]

    def after(self, batch, steps: int = 1):
        """State, as it lies on the devices, and metrics."""
        state = self.state()
        batch = parallel.put_batch(batch, self.mesh)
        for _ in range(steps):
            state, metrics = self.step(state, batch, SEED)
        return state, jax.device_get(metrics)

    def kinds(self) -> set[str]:
        return {each.kind for each in self.sent}


@functools.cache
def program(
    scope: str, group: int = 1, microbatches: int = 1, sharded: bool = False, split: int = 1
) -> Program:
    config = default.get_config()
    config.mesh.model = split
    config.batch_size, config.accumulation_steps = BATCH, microbatches
    config.model.batch_norm_scope, config.model.batch_norm_group = scope, group
    config.model.num_classes = 10
    config.schedule.name, config.schedule.warmup_epochs = "constant", 0.0
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mesh = parallel.with_model_axis(mesh, config)
    model, key = network(), jax.random.key(0)
    params = jax.eval_shape(lambda: models.init_variables(model, SIZE, key))["params"]
    optimizer = build_optimizer(config.optimizer, learning_rate(config, 1000), params)
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, SIZE, key))
    shardings = parallel.state_sharding(shapes, mesh, sharded)
    compiled = (
        jax.jit(
            make_train_step(model, config, 1000, mesh),
            donate_argnums=0,
            out_shardings=(shardings, parallel.replicated(mesh)),
        )
        .lower(
            parallel.abstract(shapes, shardings),
            parallel.abstract_batch(BATCH, SIZE, mesh),
            SEED,
        )
        .compile()
    )
    state = functools.partial(fresh_state, model, optimizer, SIZE, key, shardings)
    return Program(compiled, state, mesh, collectives(compiled.as_text()))


@pytest.fixture(scope="module")
def batch():
    """Images of which some don't count, unevenly among devices and microbatches."""
    rng = np.random.default_rng(0)
    mask = np.ones(BATCH, np.float32)
    mask[[0, 1, 2, 9, 33]] = 0
    return {
        "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
        "label": rng.integers(0, 10, BATCH, np.int32),
        "mask": mask,
    }


def assert_same_step(one, other):
    """RMSProp's root and BatchNorm magnify the order of sums in small gradients."""
    (state, metrics), (other_state, other_metrics) = one, other
    for key in metrics:
        np.testing.assert_allclose(other_metrics[key], metrics[key], rtol=1e-5, err_msg=key)
    for a, b in zip(
        jax.tree.leaves(jax.device_get(state)),
        jax.tree.leaves(jax.device_get(other_state)),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


def test_what_each_scope_sends():
    whole = program("global")
    local = program("group", 4)
    # The sums of gradients, statistics and metrics, which the compiler may combine.
    assert local.kinds() == {"all-reduce"}
    assert len(local.sent) <= 3
    # Forward a mean and a variance, backward two sums that may be one message.
    assert whole.kinds() == {"all-reduce"}
    assert 3 * NORMS <= len(whole.sent) - len(local.sent) + 1 <= 4 * NORMS + 1
    # Groups over 4 devices send as much, and never the examples.
    spread = program("group", 32)
    assert spread.kinds() == {"all-reduce"}
    assert len(spread.sent) > 3 * NORMS
    largest = 4 * 9 * WIDTH * WIDTH
    assert all(each.bytes < 3 * largest for each in spread.sent)


def test_parts_reduce_once_and_equal_the_whole(batch):
    whole, microbatches = program("group", 4), program("group", 4, microbatches=2)
    assert not any(each.in_loop for each in microbatches.sent)
    assert microbatches.kinds() == {"all-reduce"}
    assert len(microbatches.sent) <= len(whole.sent)
    assert_same_step(whole.after(batch), microbatches.after(batch))


def test_in_parts_the_global_scope_is_the_part(batch):
    microbatches = program("global", microbatches=2)
    gradients = sum(each.bytes for each in program("group", 4).sent)
    in_loop = [each for each in microbatches.sent if each.in_loop]
    assert 0 < sum(each.bytes for each in in_loop) < gradients / 10
    assert sum(each.bytes for each in microbatches.sent if not each.in_loop) <= gradients
    # Part 0 has the first 4 of every device's 8, so the same groups lie one after the other here.
    order = np.arange(BATCH).reshape(8, 2, 4).swapaxes(0, 1).reshape(-1)
    grouped = {key: value[order] for key, value in batch.items()}
    result = microbatches.after(batch)
    assert_same_step(program("group", 32).after(grouped), result)
    # And are not those of the whole batch.
    _, whole = program("global").after(batch)
    assert abs(whole["loss"] / result[1]["loss"] - 1) > 1e-4


def here(tree) -> int:
    """Bytes of a tree on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_a_sharded_state_takes_the_same_step_in_less_memory(batch):
    whole, sharded = program("group", 4), program("group", 4, sharded=True)
    states = whole.after(batch, 2), sharded.after(batch, 2)
    assert_same_step(*states)

    (state, _), (split, _) = states
    assert here(split.params) == here(state.params)
    convolution = 4 * 9 * WIDTH * WIDTH  # Of two; the rest is too small to split.
    for part, copies in (("opt_state", 2), ("ema", 1)):
        saved = here(getattr(state, part)) - here(getattr(split, part))
        assert saved == copies * 2 * convolution * 7 // 8
    # Each device updates its part, and the new parameters are gathered: nothing else.
    gathered = [each.bytes for each in sharded.sent if each.kind == "all-gather"]
    assert sum(gathered) == 2 * convolution


@pytest.mark.parametrize("scope", [("group", 4), ("group", 4, 2)])
def test_a_state_split_over_the_model_axis_takes_the_same_step(batch, scope):
    whole, split = program(*scope), program(*scope, split=4)
    assert whole.mesh.axis_names == ("data",) and split.mesh.shape == {"data": 2, "model": 4}
    states = whole.after(batch, 2), split.after(batch, 2)
    assert_same_step(*states)
    (state, _), (shared, _) = states
    convolution = 4 * 9 * WIDTH * WIDTH  # Of two; the rest is too small to split.
    for part, copies in (("params", 1), ("opt_state", 2), ("ema", 1)):
        saved = here(getattr(state, part)) - here(getattr(shared, part))
        assert saved == copies * 2 * convolution * 3 // 4
    # The batch is split over all devices all the same.
    one, other = (here(parallel.put_batch(batch, each.mesh)) for each in (whole, split))
    assert one == other
    # Parameters are gathered, once each for the forward and the backward pass, and no examples.
    gathered = [each.bytes for each in split.sent if each.kind == "all-gather"]
    assert 0 < sum(gathered) <= 2 * 2 * convolution
    assert split.kinds() <= {"all-gather", "all-reduce", "reduce-scatter"}


def test_remat_changes_memory_and_nothing_else():
    make = functools.partial(
        MBConv, stride=1, kernel=3, inputs=8, outputs=8, expanded=48, squeezed=2, survival=0.7
    )
    blocks = tuple(make(name=f"stage1/block{number}") for number in (1, 2, 3))
    table = Architecture(8, Stem(8), (blocks,), 0, 10, "swish")
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    rngs = {"dropout": jax.random.key(2), "stochastic_depth": jax.random.key(3)}
    variables = jax.jit(lambda: models.init_variables(Network(table), 8, jax.random.key(1)))()

    def run(remat):
        model = Network(table, remat=remat)

        def loss(params):
            inputs = {**variables, "params": params}
            (logits, _), updated = model.apply(
                inputs, images, train=True, mutable=["batch_stats"], rngs=rngs
            )
            return jnp.square(logits).sum(), updated

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        compiled = step.lower(variables["params"]).compile()
        return compiled.memory_analysis().temp_size_in_bytes, compiled(variables["params"])

    (bytes_kept, kept), (bytes_again, again) = run(False), run(True)
    assert jax.tree.structure(kept) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    assert bytes_again < 0.95 * bytes_kept  # With 3 blocks; the more there are, the less.
