"""The law, the rounding and the counts, against figures from outside."""

import itertools

import pytest
from conftest import golden_config, read_golden

from effnet_jax import models, scaling
from effnet_jax.models.efficientnet import FAMILIES
from effnet_jax.scaling import Coefficients

COUNTS = read_golden("param_counts.csv")


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: row["model"])
def test_parameters_and_multiply_adds_are_the_reference_s(row):
    cost = scaling.cost(models.architecture(golden_config(row["model"])).layers())
    assert cost.parameters == int(row["trainable_params"])
    assert cost.statistics == int(row["bn_moving_stats"])
    assert cost.multiply_adds == int(row["multiply_adds_at_res(conv+se+fc)"])


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: row["model"])
def test_coefficients_and_ends_are_the_reference_s(row):
    config = golden_config(row["model"])
    spec = models.architecture(config)
    assert (config.width, config.depth) == (float(row["width"]), float(row["depth"]))
    assert spec.resolution == int(row["res"])
    assert spec.stem.filters == int(row["stem"])
    assert spec.head_filters == int(row["head"])
    assert sum(map(len, spec.stages)) == int(row["n_blocks"])


@pytest.mark.parametrize("row", read_golden("rounding.csv"), ids=lambda row: row["model"])
def test_rounding_is_the_reference_s(row):
    base = FAMILIES["efficientnet"]
    filters = [base.stem.filters, *(stage.filters for stage in base.stages), base.head_filters]
    width, depth = float(row["width"]), float(row["depth"])
    expected = row["rounded_32_16_24_40_80_112_192_320_1280"].split()
    assert [scaling.round_filters(count, width) for count in filters] == [*map(int, expected)]
    expected = row["repeats_1_2_2_3_3_4_1"].split()
    repeats = [scaling.round_repeats(stage.repeats, depth) for stage in base.stages]
    assert repeats == [*map(int, expected)]
    expected = row["same_without_0.9_rule(automl)"].split()  # As V2 rounds.
    assert [scaling.round_filters(count, width, least=0) for count in filters] == [
        *map(int, expected)
    ]


def test_the_law_at_the_paper_s_points():
    # Section 3.3: alpha * beta^2 * gamma^2 is 1.9203 at the coefficients found.
    assert pytest.approx(1.92027, abs=1e-5) == scaling.ALPHA * scaling.BETA**2 * scaling.GAMMA**2
    assert scaling.compound(0) == Coefficients(1.0, 1.0, 224)
    one = scaling.compound(1)
    assert (one.depth, one.width, one.resolution) == (1.2, 1.1, 258)  # 224 * 1.15 = 257.6
    below = scaling.compound(-1)
    assert below.depth == pytest.approx(1 / 1.2)
    assert below.width == pytest.approx(1 / 1.1)
    assert below.resolution == 195  # 224 / 1.15 = 194.8
    assert scaling.compound(2, 1.0, 1.0, 2.0, base_resolution=10) == Coefficients(1.0, 1.0, 40)


def test_multiply_adds_double_with_phi():
    specs = [FAMILIES["efficientnet"].architecture(scaling.compound(phi)) for phi in range(-2, 7)]
    costs = [scaling.cost(spec.layers()).multiply_adds for spec in specs]
    assert all(later > before for before, later in itertools.pairwise(costs))
    growth = (costs[-1] / costs[0]) ** (1 / 8)
    assert 1.8 < growth < 2.2  # Rounding makes single steps uneven, not the trend.


def test_dropout_is_linear_in_phi():
    assert scaling.dropout_rate(0) == pytest.approx(0.2)
    assert scaling.dropout_rate(7) == pytest.approx(0.5)
    assert scaling.dropout_rate(3.5) == pytest.approx(0.35)
    assert scaling.dropout_rate(-100) == 0.0
    assert scaling.dropout_rate(100) == 0.5
