"""The network against the reference's blocks, names, shapes and initial values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import config_for, golden_config, read_golden, shapes_of, variable_shapes

from effnet_jax import models, scaling
from effnet_jax.errors import UserError
from effnet_jax.models import init_variables
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.models.mbconv import FusedMBConv
from effnet_jax.models.network import Network
from effnet_jax.trees import path_name


@pytest.fixture(scope="module")
def tiny_model():
    """Three stages, which have every kind of layer; the plain form compiles in half the time."""
    model = models.build(config_for("w=0.25,d=0.2,r=16", num_classes=10, stem_stride=1))
    spec = dataclasses.replace(model.architecture, stages=model.architecture.stages[:3])
    model = model.clone(architecture=spec, operations="plain")
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: init_variables(model, 16, jax.random.key(0)))

    def value(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype("f")
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), "f")

    return model, jax.tree_util.tree_map_with_path(value, shapes)


def test_every_block_is_the_reference_s():
    rows = read_golden("blocks.csv")
    others = {"lite0", "v2-b0", "v2-s"}
    assert {row["model"] for row in rows} == {f"b{i}" for i in range(8)} | others
    for name in sorted({row["model"] for row in rows}):
        spec = models.architecture(config_for(name))
        blocks = [block for stage in spec.stages for block in stage]
        golden = [row for row in rows if row["model"] == name]
        assert len(blocks) == len(golden)
        for block, row in zip(blocks, golden, strict=True):
            assert block.name == f"stage{row['stage']}/block{int(row['index_in_stage']) + 1}"
            assert block.kernel == int(row["kernel"])
            assert block.stride == int(row["stride"])
            assert block.inputs == int(row["cin"])
            assert block.expanded == int(row["expanded"])
            assert block.outputs == int(row["cout"])
            assert isinstance(block, FusedMBConv) == (row["op"] == "fused")
            assert getattr(block, "squeezed", 0) == int(row["se_reduced"])
            assert block.has_skip == (row["identity_skip"] == "yes")
            assert block.survival == pytest.approx(float(row["survival_prob"]), abs=1e-9)


@pytest.mark.parametrize("name", ["b0", "lite0", "v2-b0"])
def test_names_and_shapes_are_the_golden_ones(name):
    rows = read_golden(f"{name.replace('-', '_')}_names.csv")
    golden = {row["name"]: tuple(map(int, row["shape"].split("x"))) for row in rows}
    assert variable_shapes(config_for(name)) == golden


def test_every_stage_is_the_reference_s():
    rows = read_golden("stages.csv")
    assert {row["model"].split("/")[0].lower() for row in rows} == set(VARIANTS)
    for name in sorted({row["model"] for row in rows}):
        spec = models.architecture(golden_config(name))
        golden = [row for row in rows if row["model"] == name]
        sizes = {layer.name: layer.size for layer in spec.layers()}
        size = sizes["stem/conv"]
        assert len(spec.stages) == len(golden)
        for blocks, row in zip(spec.stages, golden, strict=True):
            first, number = blocks[0], row["stage"]
            assert isinstance(first, FusedMBConv) == (row["op"] != "mb")
            assert (first.kernel, first.stride) == (int(row["kernel"]), int(row["stride"]))
            assert len(blocks) == int(row["repeats"])
            assert first.expanded == int(row["expand"]) * int(row["cin"])
            # EdgeTPU's stem has other filters than its table says.
            table = row["op"] == "edge" and number == "1"
            assert first.inputs == int(row["stem" if table else "cin"])
            assert {block.outputs for block in blocks} == {int(row["cout"])}
            ratio = float(row["se_ratio"])
            assert getattr(first, "squeezed", 0) == int(first.inputs * ratio)
            assert size == int(row["stage_input_res"])
            size = sizes[f"stage{number}/block{len(blocks)}/project"]
            for block in blocks:
                fits = block.stride == 1 and block.inputs == block.outputs
                assert block.has_skip == (fits and not table)
        assert (spec.stem.filters, spec.head_filters) == (int(row["stem"]), int(row["head"]))
        assert size == sizes["head/conv"] == int(row["final_feature_res"])


# A variant of each table; what the others count is compared with golden figures.
TABLES = ["b0", "l2", "lite4", "edgetpu-l", "v2-b3", "v2-s", "v2-m", "v2-l", "v2-xl"]


@pytest.mark.parametrize("name", [*TABLES, "w=0.7,d=2.3,r=111"])
def test_the_table_counts_what_the_module_builds(name):
    spec = models.architecture(config_for(name))
    for blocks in spec.stages:  # From the second on they are the same, so that two are enough.
        same = {dataclasses.replace(block, name="", survival=1.0) for block in blocks[1:]}
        assert len(same) == min(1, len(blocks) - 1)
    spec = dataclasses.replace(spec, stages=tuple(blocks[:2] for blocks in spec.stages))
    shapes = shapes_of(Network(spec, operations="plain"))
    layers = spec.layers()
    cost = scaling.cost(layers)

    def total(part):
        sizes = [np.prod(shape, dtype=int) for k, shape in shapes.items() if k.startswith(part)]
        return sum(sizes)

    assert total("params/") == cost.parameters
    assert total("batch_stats/") == cost.statistics
    kernels = {k for k in shapes if k.endswith("/kernel")}
    assert {f"params/{layer.name}/kernel" for layer in layers} == kernels


def test_the_table_s_feature_sizes_are_the_module_s():
    config = config_for("w=0.25,d=0.2,r=75")  # Odd sizes all the way down.
    model = models.build(config)
    variables = jax.eval_shape(lambda: init_variables(model, 75, jax.random.key(0)))
    images = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32)
    logits, features = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False), variables, images
    )
    assert logits.shape == (2, 1000)
    stages = [f"stage{i}" for i in range(1, 8)]
    assert set(features) == {"stem", *stages, "head", "pre_logits"}
    sizes = {layer.name: layer.size for layer in model.architecture.layers()}
    assert features["stem"].shape[1] == sizes["stem/conv"] == 38
    for stage in stages:
        assert features[stage].shape[1] == sizes[f"{stage}/block1/project"]
    assert features["head"].shape[1:3] == (3, 3)
    assert features["pre_logits"].shape == (2, 320)


def test_initial_values_are_the_reference_s():
    # official_training.json: normal with variance 2 / (k k outputs), for depthwise 2 / (k k); dense
    # uniform within 1 / sqrt(classes); biases 0; BatchNorm scale 1.
    model = models.build(config_for("b0"))
    statistics = [f"batch_stats/stem/norm/{key}" for key in ("mean", "var")]
    variances = {
        "head/conv/kernel": 2 / 1280,
        "stem/conv/kernel": 2 / (9 * 32),
        "stage6/block2/expand/kernel": 2 / 1152,
        "stage6/block2/depthwise/kernel": 2 / 25,
        "stage4/block2/depthwise/kernel": 2 / 9,
        "stage6/block2/squeeze_excite/reduce/kernel": 2 / 48,
    }
    others = ["classifier/kernel", "classifier/bias", "stem/norm/scale", "stem/norm/bias"]
    others.append("stage6/block2/squeeze_excite/reduce/bias")
    wanted = {f"params/{path}" for path in (*variances, *others)} | set(statistics)

    @jax.jit
    def some(key):  # XLA leaves out what is not returned.
        leaves = jax.tree_util.tree_flatten_with_path(init_variables(model, 32, key))[0]
        return {path_name(path): leaf for path, leaf in leaves if path_name(path) in wanted}

    variables = jax.tree.map(np.asarray, some(jax.random.key(0)))
    assert variables.keys() == wanted

    def values(path):
        return variables[f"params/{path}"]

    for path, variance in variances.items():
        kernel = values(path).ravel()
        error = 5 * np.sqrt(2 / kernel.size)  # Five deviations of a sample variance.
        assert kernel.var() == pytest.approx(variance, rel=error), path
        assert abs(kernel.mean()) < 5 * np.sqrt(variance / kernel.size)
        # Not truncated: of n draws the largest lies near sqrt(2 log n) deviations.
        assert np.abs(kernel).max() > 0.75 * np.sqrt(2 * np.log(kernel.size) * variance)
    dense, limit = values("classifier/kernel"), 1 / np.sqrt(1000)
    assert np.abs(dense).max() <= limit
    assert dense.var() == pytest.approx(limit**2 / 3, rel=0.01)
    assert not values("classifier/bias").any()
    assert not values("stage6/block2/squeeze_excite/reduce/bias").any()
    assert (values("stem/norm/scale") == 1).all()
    assert not values("stem/norm/bias").any()
    mean, var = (variables[name] for name in statistics)
    assert not mean.any()
    assert (var == 1).all()


def test_bfloat16_computes_close_to_float32_and_keeps_float32_state(tiny_model):
    model, variables = tiny_model
    half = model.clone(dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(2), (8, 16, 16, 3))
    logits, features = jax.jit(lambda v, x: half.apply(v, x, train=False))(variables, images)
    expected, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert logits.dtype == jnp.float32
    assert {value.dtype for value in features.values()} == {jnp.dtype(jnp.bfloat16)}
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(logits, expected, atol=0.1 * scale)
    fresh = jax.eval_shape(lambda: init_variables(half, 16, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype(jnp.float32)}


def test_batch_norm_keeps_99_hundredths_of_the_running_statistics(tiny_model):
    model, variables = tiny_model
    images = 3 + jax.random.normal(jax.random.key(2), (16, 16, 16, 3))
    (_, _), updated = jax.jit(
        lambda v, x: model.apply(
            v,
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3), "stochastic_depth": jax.random.key(4)},
        )
    )(variables, images)
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    stem = np.asarray(
        jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    ).reshape(-1, kernel.shape[-1])
    after = updated["batch_stats"]["stem"]["norm"]
    np.testing.assert_allclose(after["mean"], 0.01 * stem.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["var"], 0.99 + 0.01 * stem.var(0), rtol=1e-4)


def test_stochastic_depth_drops_samples_and_keeps_the_mean():
    from effnet_jax.models.layers import stochastic_depth

    x = jnp.ones((20_000, 2, 2, 1))
    y = np.asarray(stochastic_depth(x, 0.8, jax.random.key(0)))
    by_sample = y.reshape(len(y), -1)
    assert (by_sample == by_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(by_sample), [0, 1 / 0.8], rtol=1e-6)
    assert (by_sample[:, 0] > 0).mean() == pytest.approx(0.8, abs=0.015)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b9", "b8"),
        ("phi", "phi=1.5"),
        ("phi=x", "phi=1.5"),
        ("phi=1..2", "not a number"),
        ("w=1,d=1", "w=1.2,d=1.4,r=291"),
    ],
)
def test_an_unknown_model_lists_the_near_ones(name, message):
    with pytest.raises(UserError, match=message):
        models.parse_variant(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 31}, "total stride 32"),
        ({"phi": 1.0}, "contradict"),
        ({"width": None}, "all of width, depth and resolution"),
        ({"width": -1.0}, "above 0"),
        ({"dtype": "float16"}, "float32"),
        ({"dropout": 1.0}, "dropout"),
        ({"survival_probability": 0.0}, "survival_probability"),
        ({"stem_stride": 3}, "stem_stride"),
    ],
)
def test_impossible_models_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        models.build(config_for("b0", **changes))
