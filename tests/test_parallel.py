"""BatchNorm's scope as a number of examples."""

import pytest

from effnet_jax import config as default
from effnet_jax import parallel
from effnet_jax.errors import UserError


def group_of(scope: str, group: int, examples: int, devices: int) -> int:
    config = default.get_config()
    config.batch_size = examples
    config.model.batch_norm_scope, config.model.batch_norm_group = scope, group
    return parallel.batch_norm_group(config, devices)


def test_the_reference_shares_over_an_eighth_of_the_shards_and_at_least_eight():
    # By hand from the rule in reference/official_training.json: none up to 8 shards, else groups of
    # max(8, shards // 8).
    shards = {1: 1, 2: 1, 8: 1, 16: 8, 32: 8, 64: 8, 128: 16, 256: 32, 512: 64, 1024: 128}
    assert {count: group_of("reference", 5, count, count) for count in shards} == shards
    with pytest.raises(UserError, match="groups of 8 devices, and 12 devices"):
        group_of("reference", 5, 12, 12)


def test_v2_shares_over_eight_shards():
    # num_shards_per_group = min(8, num_shards) in google/automl efficientnetv2/utils.py.
    shards = {1: 1, 2: 2, 6: 6, 8: 8, 16: 8, 32: 8, 1024: 8}
    assert {count: group_of("reference_v2", 5, count, count) for count in shards} == shards
    with pytest.raises(UserError, match="='reference_v2' has groups of 8 devices, and 12 devices"):
        group_of("reference_v2", 5, 12, 12)


@pytest.mark.parametrize(
    ("scope", "group", "examples", "devices", "expected"),
    [
        ("global", 5, 256, 8, 256),
        ("group", 32, 256, 8, 32),
        ("group", 8, 256, 8, 8),
        ("group", 64, 256, 8, 64),
        ("group", 256, 256, 1, 256),
        ("reference", 5, 256, 8, 32),
        ("reference", 5, 2048, 16, 1024),
        ("reference", 5, 4096, 1024, 512),
    ],
)
def test_examples_in_a_group(scope, group, examples, devices, expected):
    assert group_of(scope, group, examples, devices) == expected


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (24, "group=24 does not divide the 32 examples .* of 8 devices .*; use 16$"),
        (96, "no multiple of them that divides all 256; use 64$"),
        (512, "; use 256$"),
    ],
)
def test_groups_that_are_not_whole_are_refused(group, message):
    with pytest.raises(UserError, match=message):
        group_of("group", group, 256, 8)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (None, 3, "mesh.model=3 do not divide 8 devices; use a model out of 1, 2, 4, 8"),
        (2, 2, "config.mesh.data=2 and config.mesh.model=2 do not divide 8 devices"),
        (4, 1, "config.mesh.data=4 and config.mesh.model=1 do not divide 8 devices"),
        (None, 2, "optimizer.sharded=True and config.mesh.model=2 both split"),
    ],
)
def test_a_mesh_that_is_not_all_devices_is_refused(data, model, message):
    config = default.get_config()
    config.mesh.data, config.mesh.model = data, model
    config.optimizer.sharded = "sharded" in message
    with pytest.raises(UserError, match=message):
        parallel.with_model_axis(parallel.data_mesh(), config)


def test_a_mesh_keeps_its_devices_in_order_and_one_axis_stays_as_it_is():
    config, mesh = default.get_config(), parallel.data_mesh()
    assert parallel.with_model_axis(mesh, config) is mesh and parallel.describe_mesh(mesh) == []
    config.mesh.model = 4
    made = parallel.with_model_axis(mesh, config)
    assert made.shape == {"data": 2, "model": 4} and parallel.data_shards(made) == 8
    assert made.devices.reshape(-1).tolist() == mesh.devices.tolist()
    assert parallel.describe_mesh(made) == [
        "mesh: 2 x 4 devices (data x model); each keeps 1/4 of large arrays"
    ]


def test_the_scope_is_reported():
    config = default.get_config()
    config.batch_size, config.model.batch_norm_scope = 256, "reference"
    assert parallel.describe_batch_norm(config, 1) == []
    (shown,) = parallel.describe_batch_norm(config, 8)
    assert shown == "BatchNorm over groups of 32 of 256 examples (reference rule, 8 devices)"
    config.accumulation_steps, config.model.batch_norm_scope = 4, "global"
    (shown,) = parallel.describe_batch_norm(config, 8)
    assert "groups of 64 of 64 examples at a time, in 4 microbatches" in shown
