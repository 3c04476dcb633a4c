"""The step: loss by hand, equal on 1 and 8 devices, learning something."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from effnet_jax import config as config_lib
from effnet_jax import parallel
from effnet_jax.data import pipeline, sources
from effnet_jax.evaluation import make_eval_step
from effnet_jax.metrics import cross_entropy, no_outcomes, smooth_targets
from effnet_jax.training.state import abstract_state, fresh_state
from effnet_jax.training.step import lower_train_step, make_train_step, random_key

SEED = np.uint32(0)


def test_cross_entropy_by_hand():
    logits = jnp.asarray([[2.0, 0.0, -1.0]])
    log_p = np.log(np.exp([2.0, 0.0, -1.0]) / np.exp([2.0, 0.0, -1.0]).sum())
    label = jnp.asarray([1])
    plain = float(cross_entropy(logits, smooth_targets(label, 3))[0])
    assert plain == pytest.approx(-log_p[1], rel=1e-6)
    # Label smoothing 0.1 over three classes: 0.1 / 3 on each, 0.9 more on the label.
    expected = -(0.9 * log_p[1] + 0.1 / 3 * log_p.sum())
    smoothed = float(cross_entropy(logits, smooth_targets(label, 3, 0.1))[0])
    assert smoothed == pytest.approx(expected, rel=1e-6)


def test_keys_differ_by_seed_purpose_and_step():
    keys = [
        random_key(seed, purpose, step)
        for seed in (0, 1)
        for purpose in ("init", "dropout")
        for step in (0, 1)
    ]
    assert len({jax.random.key_data(key).tobytes() for key in map(jax.device_get, keys)}) == 8
    again = jax.random.key_data(random_key(1, "dropout", 1))
    np.testing.assert_array_equal(again, jax.random.key_data(keys[-1]))


def prepare(config, devices: int):
    """The jitted step, a fresh state and a batch, on `devices` devices."""
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    # The same program for every test here, so that it is compiled once for each mesh.
    config.schedule.name = "constant"
    config.schedule.warmup_epochs = 0.0
    with config.unlocked():
        config.model.num_classes = 10
    model, optimizer, _ = abstract_state(config, 1437)
    state = fresh_state(model, optimizer, 16, random_key(0, "init", 0), replicated)
    source = sources.open_source(config.data, "train")
    made = pipeline.train_batches(source, config, 16)
    batches = [
        jax.device_put(made[step], NamedSharding(mesh, PartitionSpec("data"))) for step in range(2)
    ]
    step = jax.jit(
        make_train_step(model, config, 1437, mesh), donate_argnums=0, out_shardings=replicated
    )
    return step, state, batches


def test_one_and_eight_devices_take_the_same_step(tiny):
    # BatchNorm is over the global batch and random numbers follow from the step, so only the order
    # of float32 sums differs; RMSProp's root and BatchNorm magnify that in small gradients.
    results = []
    for devices in (1, 8):
        step, state, batches = prepare(tiny, devices)
        state, metrics = step(state, batches[0], SEED)
        assert state.params["stem"]["conv"]["kernel"].sharding.num_devices == devices
        results.append(jax.device_get((state, metrics)))
        step(state, batches[1], SEED)
        assert step._cache_size() == 1  # Compiled once, and the state comes out as it went in.
    (one, one_metrics), (eight, eight_metrics) = results
    for key in one_metrics:
        np.testing.assert_allclose(eight_metrics[key], one_metrics[key], rtol=1e-5, err_msg=key)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


def test_loss_falls_on_a_memorisable_batch_and_averages_follow(tiny):
    step, state, batches = prepare(tiny, 1)
    initial = jax.device_get(state)
    losses = []
    for count in range(40):
        before = jax.device_get(state.ema)
        state, metrics = step(state, batches[0], SEED)
        losses.append(float(metrics["loss"] / metrics["count"]))
        if count in (0, 7):
            # ema = d ema + (1 - d) new with d = (1 + n) / (10 + n) at update n, BatchNorm included.
            decay = (2 + count) / (11 + count)
            new = {"params": state.params, "batch_stats": state.batch_stats}
            expected = jax.tree.map(lambda e, n, d=decay: d * e + (1 - d) * n, before, new)
            for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert losses[0] > 1.5
    # Label smoothing bounds the loss below: 0.5 for 10 classes at 0.1.
    assert min(losses[-5:]) < 0.75
    assert int(state.step) == 40
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), initial.params, state.params)
    assert all(jax.tree.leaves(moved))


# Not adamw: optax itself takes the power of a float by an int there.
@pytest.mark.parametrize(("optimizer", "schedule"), [("rmsprop", "staircase"), ("sgd", "cosine")])
def test_the_whole_step_promotes_nothing_silently(optimizer, schedule):
    config = config_lib.get_config("resnet20,w=0.25,d=0.3,r=8")
    config.batch_size, config.optimizer.name, config.schedule.name = 4, optimizer, schedule
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.5
    if optimizer == "sgd":  # As V2-M's recipe.
        config.augment.mixing, config.augment.cutmix_labels = "halves", "mean_area"
    with config.unlocked():
        config.model.num_classes = 3
    model, _, shapes = abstract_state(config, 100)
    mesh = parallel.data_mesh(jax.devices()[:1])
    evaluate = make_eval_step(model, config.preprocess)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        lower_train_step(model, shapes, config, 100, mesh)
        batch = parallel.abstract_batch(4, 8, mesh)
        sums = jax.eval_shape(evaluate, *shapes.weights("ema"), batch)
        evaluate_more = functools.partial(evaluate, outcomes=no_outcomes(3))
        jax.eval_shape(evaluate_more, *shapes.weights("ema"), batch, first=np.int32(4))
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
