"""Schedules, averages, optimizers and rules against figures from outside or by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import read_golden

from configs import folder, imagenet
from effnet_jax import config as default
from effnet_jax.errors import UserError
from effnet_jax.training import optimizer
from effnet_jax.trees import shapes_by_name

IMAGENET = 1_281_167


@pytest.mark.parametrize("batch", [2048, 4096])
def test_learning_rate_is_the_reference_s(batch):
    config = default.get_config("b0")
    config.batch_size = batch
    rate = jax.jit(optimizer.learning_rate(config, IMAGENET))
    rows = [row for row in read_golden("lr_ema.csv") if int(row["batch"]) == batch]
    assert len(rows) == 16
    for row in rows:
        assert float(rate(int(row["step"]))) == pytest.approx(float(row["lr"]), rel=1e-6), row


def test_decay_of_the_averages_is_the_reference_s():
    for row in read_golden("lr_ema.csv"):
        expected = float(row["ema_effective_decay_at_num_updates=step"])
        assert float(optimizer.ema_decay(0.9999, int(row["step"]))) == pytest.approx(expected)


def test_length_of_the_reference_s_run():
    assert optimizer.steps(350, 2048, IMAGENET) == 218_949  # official_training.json, train_steps


def test_cosine_and_constant():
    config = default.get_config("b0")
    config.batch_size, config.epochs = 256, 10.0
    config.schedule.warmup_epochs = 1.0
    config.optimizer.name = "sgd"
    config.schedule.name = "cosine"
    rate = optimizer.learning_rate(config, 2560)  # 100 steps, 10 of them warm-up.
    peak = config.optimizer.sgd.learning_rate
    assert float(rate(5)) == pytest.approx(peak / 2)
    assert float(rate(50)) == pytest.approx(peak * 0.5)
    assert float(rate(25)) == pytest.approx(peak * 0.5 * (1 + np.cos(np.pi / 4)))
    assert float(rate(100)) == pytest.approx(0, abs=1e-9)
    config.schedule.name = "constant"
    config.batch_size = 512
    assert float(optimizer.learning_rate(config, 2560)(99)) == pytest.approx(2 * peak)


def test_the_rate_ends_at_min_rate():
    config = default.get_config("b0")
    config.batch_size, config.epochs = 256, 10.0
    config.schedule.warmup_epochs, config.schedule.min_rate = 1.0, 0.1
    config.optimizer.name, config.optimizer.sgd.learning_rate = "sgd", 0.5
    # 100 steps, 10 of them warm-up, from 0. A cosine is shrunk, so that it falls until the end:
    # 0.05 + 0.45 (1 + cos(pi t / 100)) / 2. A staircase that halves every 10 steps stops at 0.05.
    by_name = {
        "cosine": {5: 0.25, 25: 0.434099026, 50: 0.275, 75: 0.115900974, 99: 0.050111, 100: 0.05},
        "staircase": {5: 0.25, 10: 0.25, 29: 0.125, 30: 0.0625, 40: 0.05, 99: 0.05},
        "constant": {5: 0.25, 10: 0.5, 100: 0.5},
    }
    config.schedule.decay_rate, config.schedule.decay_epochs = 0.5, 1.0
    for name, expected in by_name.items():
        config.schedule.name = name
        rate = jax.jit(optimizer.learning_rate(config, 2560))
        for step, value in expected.items():
            assert float(rate(step)) == pytest.approx(value, rel=1e-6), (name, step)


def test_the_classifier_alone_and_the_rest_have_a_schedule_each():
    config = default.get_config("b0")
    config.batch_size, config.epochs, config.steps = 256, None, 100
    config.schedule.warmup_epochs, config.schedule.warmup_steps = None, 10
    config.optimizer.name, config.optimizer.sgd.learning_rate = "sgd", 0.5
    config.schedule.name = "cosine"
    config.fine_tune.head_epochs, config.fine_tune.head_steps = None, 20
    for _ in range(2):
        rate = jax.jit(optimizer.learning_rate(config, 2560))
        # 0.25 (1 + cos(pi t / 20)) of the first 20 steps, and the same over 80 from there.
        expected = {0: 0.0, 5: 0.25, 10: 0.25, 15: 0.073223305, 20: 0.0, 25: 0.25, 60: 0.25}
        for step, value in expected.items():
            assert float(rate(step)) == pytest.approx(value, rel=1e-6), step
        config.fine_tune.head_done = True  # As in the config of the second stage.
    assert optimizer.warnings(config, 2560) == []
    config.schedule.warmup_steps = 11
    (line,) = optimizer.warnings(config, 2560)
    assert "rises for 11 steps, and the classifier alone has 20" in line


def test_whole_steps_an_epoch_are_v2_s():
    # google/automl efficientnetv2/main_tf2.py, by hand: 1,281,167 // 4096 = 312 steps an epoch,
    # 1560 of warm-up, and a decay every 2.4 * 312 = 748.8 from step 0; 306 without the hold-out.
    config = imagenet.get_config("v2-s")
    assert optimizer.epoch_examples(config, IMAGENET) == 312 * 4096
    assert optimizer.epoch_examples(config, 1_256_144) == 306 * 4096
    assert optimizer.epoch_examples(default.get_config(), IMAGENET) == IMAGENET
    rate = jax.jit(optimizer.learning_rate(config, IMAGENET))
    expected = {0: 0, 1559: 0.256 * 1559 / 1560, 1560: 0.256 * 0.97**2, 2246: 0.256 * 0.97**2}
    expected |= {2247: 0.256 * 0.97**3, 109_199: 0.256 * 0.97**145}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def run(transformation, weights, gradients):
    state = transformation.init(weights)
    path = []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        path.append(weights)
    return path


@pytest.mark.parametrize(("model", "start"), [("b0", 1.0), ("v2-s", 0.0)])
def test_rmsprop_follows_tensorflow_s_and_keras_s_trajectory(model, start):
    # official_training.json: ms = 0.9 ms + 0.1 g^2 from 1; mom = 0.9 mom + lr g / sqrt(ms + 1e-3);
    # w -= mom; g includes 1e-5 w, but not for BatchNorm. The rate falls on the way, which tells the
    # learning rate inside the momentum from outside. V2's is Keras's, whose ms starts at 0:
    # keras/optimizers/rmsprop.py.
    rates = [0.1, 0.1, 0.05, 0.05, 0.01, 0.01]
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(len(rates), 2)) * np.array([1.0, 1e-3])
    config = imagenet.get_config(model).optimizer
    config.rmsprop.weight_decay = 1e-2
    params = {"conv": {"kernel": jnp.asarray(0.7)}, "norm": {"scale": jnp.asarray(-0.4)}}
    schedule = lambda step: jnp.asarray(rates)[step]  # noqa: E731
    ours = run(
        optimizer.build_optimizer(config, schedule, params),
        params,
        [{"conv": {"kernel": g[0]}, "norm": {"scale": g[1]}} for g in jnp.asarray(gradients)],
    )
    w, ms, mom = np.array([0.7, -0.4]), np.full(2, start), np.zeros(2)
    for rate, gradient, actual in zip(rates, gradients, ours, strict=True):
        g = gradient + np.array([1e-2, 0]) * w
        ms = 0.9 * ms + 0.1 * g**2
        mom = 0.9 * mom + rate * g / np.sqrt(ms + 1e-3)
        w = w - mom
        np.testing.assert_allclose(
            [actual["conv"]["kernel"], actual["norm"]["scale"]], w, rtol=1e-5
        )


def test_sgd_and_adamw_follow_their_definitions():
    config = default.get_config("b0").optimizer
    params = {"kernel": jnp.asarray(0.5)}
    gradients = [0.3, -0.2, 0.1]
    trees = [{"kernel": jnp.asarray(g)} for g in gradients]
    schedule = lambda step: 0.1  # noqa: E731

    config.name = "sgd"
    config.weight_decay_rules = ((".*", 1.0),)
    config.sgd.update({"momentum": 0.9, "nesterov": False, "weight_decay": 0.01})
    ours = run(optimizer.build_optimizer(config, schedule, params), params, trees)
    w, trace = 0.5, 0.0
    for g, actual in zip(gradients, ours, strict=True):
        trace = 0.9 * trace + g + 0.01 * w
        w -= 0.1 * trace
        assert float(actual["kernel"]) == pytest.approx(w, rel=1e-5)

    config.name = "adamw"
    config.adamw.update({"b1": 0.9, "b2": 0.99, "epsilon": 1e-8, "weight_decay": 0.05})
    ours = run(optimizer.build_optimizer(config, schedule, params), params, trees)
    w, m, v = 0.5, 0.0, 0.0
    for step, (g, actual) in enumerate(zip(gradients, ours, strict=True), 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        step_size = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
        w -= 0.1 * (step_size + 0.05 * w)
        assert float(actual["kernel"]) == pytest.approx(w, rel=1e-5)


def test_lion_is_optax_s():
    config = default.get_config("b0").optimizer
    config.name = "lion"
    rng, rates = np.random.default_rng(0), jnp.asarray([0.1, 0.1, 0.05, 0.01])
    params = {"conv": {"kernel": jnp.ones((2, 3))}, "norm": {"scale": jnp.ones(3)}}
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    gradients = [jax.tree.map(draw, params) for _ in rates]
    schedule = lambda step: rates[step]  # noqa: E731
    ours = run(optimizer.build_optimizer(config, schedule, params), params, gradients)
    mask = {"conv": {"kernel": True}, "norm": {"scale": False}}
    peer = optax.lion(schedule, b1=0.9, b2=0.99, weight_decay=0.5, mask=mask)
    for one, other in zip(ours, run(peer, params, gradients), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)


def test_the_gradient_is_clipped_as_by_optax():
    """The norm is over all arrays, and without weight decay, which is added later."""
    config = default.get_config("b0").optimizer
    config.name, config.clip_norm = "sgd", 1.0
    config.sgd.update({"momentum": 0.9, "nesterov": True, "weight_decay": 0.5})
    config.weight_decay_rules = ((".*", 1.0),)
    params = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.asarray(0.5)}
    # Norms 13, at the limit, and below it.
    gradients = [
        {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.asarray(12.0)},
        {"kernel": jnp.array([0.6, 0.0]), "bias": jnp.asarray(-0.8)},
        {"kernel": jnp.array([0.1, -0.2]), "bias": jnp.asarray(0.2)},
    ]
    clipped = optimizer.build_optimizer(config, lambda step: 0.1, params)
    ours = run(clipped, params, gradients)
    peer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.add_decayed_weights(0.5),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    )
    for one, other in zip(ours, run(peer, params, gradients), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)
    # Its state has no place in a checkpoint, so that a run that resumes can change it.
    config.clip_norm = None
    plain = optimizer.build_optimizer(config, lambda step: 0.1, params)
    assert shapes_by_name(plain.init(params)) == shapes_by_name(clipped.init(params))
    # The first step by hand: 0.1 (1 + 0.9) (12 / 13 + 0.5 * 0.5).
    assert float(ours[0]["bias"]) == pytest.approx(0.5 - 0.19 * (12 / 13 + 0.25), rel=1e-6)


PARAMS = {
    "stem": {"conv": {"kernel": 0}, "norm": {"scale": 0, "bias": 0}},
    "stage1": {"block1": {"expand_norm": {"bias": 0}, "squeeze_excite": {"reduce": {"bias": 0}}}},
    "classifier": {"kernel": 0, "bias": 0},
}


def test_default_rules_decay_everything_but_batch_norm():
    rules = default.get_config("b0").optimizer.weight_decay_rules
    factors = optimizer.multipliers(rules, PARAMS, "rules")
    assert factors == {
        "stem": {"conv": {"kernel": 1}, "norm": {"scale": 0, "bias": 0}},
        "stage1": {
            "block1": {"expand_norm": {"bias": 0}, "squeeze_excite": {"reduce": {"bias": 1}}}
        },
        "classifier": {"kernel": 1, "bias": 1},
    }


def test_rules_are_full_matches_first_one_wins_and_all_must_be_covered():
    rules = (("classifier/.*", 0.5), (".*kernel", 2.0), (".*", 3.0))
    factors = optimizer.multipliers(rules, PARAMS, "rules")
    assert factors["classifier"] == {"kernel": 0.5, "bias": 0.5}
    assert factors["stem"]["conv"]["kernel"] == 2.0
    assert factors["stem"]["norm"]["bias"] == 3.0
    with pytest.raises(UserError, match=r"rules: no rule covers 6 parameters \(.*bias"):
        optimizer.multipliers((("classifier/kernel", 1.0),), PARAMS, "rules")
    with pytest.raises(UserError, match="first match of no parameter"):
        optimizer.multipliers((("clasifier/.*", 1.0), (".*", 1.0)), PARAMS, "rules")


def test_a_learning_rate_of_zero_freezes():
    config = default.get_config("b0").optimizer
    config.learning_rate_rules = (("frozen", 0.0), (".*", 1.0))
    config.weight_decay_rules = ((".*", 1.0),)
    params = {"frozen": jnp.asarray(1.0), "free": jnp.asarray(1.0)}
    gradients = [{"frozen": jnp.asarray(1.0), "free": jnp.asarray(1.0)}] * 3
    end = run(optimizer.build_optimizer(config, lambda step: 0.1, params), params, gradients)[-1]
    assert float(end["frozen"]) == 1.0
    assert float(end["free"]) < 1.0


def test_a_warm_up_of_most_of_the_run_is_reported():
    config = folder.get_config()
    assert optimizer.warnings(config, 1000) == []
    config.steps = 30
    (line,) = optimizer.warnings(config, 1000)
    assert "rises for 20 steps, and the run has 30;" in line
