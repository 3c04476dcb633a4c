import csv

import pytest

from effnet_jax import models
from effnet_jax.errors import UserError
from effnet_jax.weights import origins
from effnet_jax.weights.names import list_arrays
from effnet_jax.weights.origins import NAMES, ORIGINS
from tests.conftest import GOLDEN, config_for, variable_shapes
from tests.weights.stand_ins import table

FORMATS = {"tf": "tf", "keras": "tf", "timm": "torch", "torchvision": "torch", "lukemelas": "torch"}


@pytest.mark.parametrize("model", ["b0", "b1", "lite0", "v2-b0", "v2-s"])
def test_every_array_has_the_name_and_shape_that_each_format_gives_it(model):
    with open(GOLDEN / "weight_names" / f"{model}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = table(model, 1000)
    checked = []
    for key, layout in FORMATS.items():
        golden = {row[key]: row[f"{layout}_shape"] for row in rows if row[key]}
        if not golden:  # The format has no such model.
            continue
        if key == "tf":  # The model's own name before all of them is dropped.
            (prefix,) = {name.partition("/")[0] for name in golden}
            golden = {name.removeprefix(f"{prefix}/"): shape for name, shape in golden.items()}
        names = NAMES[key]
        ours = {names.of(array): "x".join(map(str, names.shape(array))) for array in found}
        assert ours == golden
        # An array of ours is the same one in every format: rows are in the order of its layers.
        assert [names.of(array) for array in found] == list(golden)
        checked.append(key)
    assert checked


@pytest.mark.parametrize("model", ["lite2", "v2-b0", "resnet18", "mobilenet_v1"])
def test_our_names_and_shapes_are_those_of_the_parameter_tree(model):
    config = config_for(model)
    found = list_arrays(models.architecture(config))
    assert {array.name: array.shape for array in found} == variable_shapes(config)


@pytest.mark.parametrize("key", NAMES)
def test_each_formats_names_are_told_from_the_others(key):
    for model in ("b0", "lite0", "v2-s", "edgetpu-s"):
        found = [NAMES[key].of(array) for array in table(model)]
        assert len(set(found)) == len(found)
        assert origins.detect(found, "file") == key


def test_unknown_names_are_shown():
    with pytest.raises(UserError, match=r"names of no known format .* layer1\.0\.conv1\.weight"):
        origins.detect(["layer1.0.conv1.weight"], "file")


# reference/numerical_diffs.csv: stride-2 padding and BN epsilon.
@pytest.mark.parametrize(
    ("origin", "model", "padding", "epsilon"),
    [
        ("tf", "b0", "same", 1e-3),
        ("keras", "b7", "same", 1e-3),
        ("timm_tf", "v2-s", "same", 1e-3),
        ("timm", "b0", "symmetric", 1e-5),
        ("torchvision", "b4", "symmetric", 1e-5),
        ("torchvision", "b5", "symmetric", 1e-3),
        ("torchvision", "v2-m", "symmetric", 1e-3),
        ("lukemelas", "lite0", "same", 1e-3),
    ],
)
def test_padding_and_epsilon_are_the_origins(origin, model, padding, epsilon):
    assert (ORIGINS[origin].padding, ORIGINS[origin].epsilon(model)) == (padding, epsilon)
