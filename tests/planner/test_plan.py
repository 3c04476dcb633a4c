"""The planner's arithmetic and its messages; its compiler, libtpu, is not needed."""

import importlib.util
import json

import jax
import pytest
import rich.console
from conftest import ROOT

from effnet_jax import cli, parallel
from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.planner import plan as planner
from effnet_jax.planner.plan import GIB
from effnet_jax.tools import plan as command

MADE = planner.Program(GIB, 1e12, 8.19e10, {"all-reduce": (3, 21_000_000)}, 0.1, "memory")


def fake(batch: int, memory: float, made: planner.Program | None = MADE) -> planner.Plan:
    """A plan with so many bytes, of 16 GiB."""
    return planner.Plan(
        model="b0",
        resolution=224,
        choices=dict.fromkeys(planner.CHOICES, "chosen"),
        topology="v5e:2x2",
        devices=4,
        devices_per_chip=1,
        batch_size=batch,
        parameters=5_288_548,
        epochs=350.0,
        examples=1_281_167,
        hbm_bytes=16 * GIB,
        memory_bytes=int(memory),
        program=made if memory <= 16 * GIB else None,
        compile_seconds=1.0,
    )


def test_the_slower_of_arithmetic_and_memory_decides():
    v5e, v3 = planner.CHIPS["v5e"], planner.CHIPS["v3"]
    assert planner.roofline(197e12, 819e9 / 2, v5e) == (1.0, "arithmetic")
    assert planner.roofline(197e12 / 4, 819e9 / 2, v5e) == (0.5, "memory")
    # Half a chip per device.
    assert planner.roofline(123e12, 0, v3) == (2.0, "arithmetic")


def test_hours_are_images_over_speed():
    planned = fake(512, GIB)
    assert planned.images_per_second == pytest.approx(5120)
    assert planned.hours == pytest.approx(24.328, abs=1e-3)  # 350 x 1,281,167 / 5,120 / 3,600.
    assert fake(512, 17 * GIB).hours is None


def test_a_wrong_topology_lists_the_right_ones():
    assert planner.check_topology("v3:4x4").devices == 2
    with pytest.raises(
        UserError, match=r"unknown --topology=v5e:3x3; v5e has v5e:1x1, .*v5e:16x16"
    ):
        planner.check_topology("v5e:3x3")
    with pytest.raises(UserError, match=r"(?s)such as v5e:4x4.*v2: 2x2.*tpu7x: 2x2x1"):
        planner.check_topology("v5litepod-16")


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu.*pip install -e '.\[tpu-plan\]'"):
        planner.topology_mesh("v5e:2x2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:5x5"], "error: unknown --topology=v5e:5x5; v5e has v5e:1x1"),
        ([], "error: the following arguments are required: --topology"),
        (["--topology=v5e:2x2", "--batch=8", "--batch_per_chip=2"], "error: argument --batch_per"),
        (["--topology=v5e:2x2", "--search=speed"], "error: argument --search: invalid choice"),
    ],
)
def test_the_command_ends_with_one_message(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        cli.run(command.main, command.PARSER, arguments)
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_the_demand_is_read_from_the_compilers_errors():
    # As libtpu 0.0.42 and 0.0.52 put it, and as XLA does where a list of allocations follows.
    ours = "Ran out of memory on HBM, the total memory required for HLO temporaries (64.00G) "
    ours += "exceeds available HBM (15.75G)."
    other = "Ran out of memory in memory space hbm. Used 512.50M of 15.75G hbm. Exceeded by"
    assert planner.demanded_bytes(f"RESOURCE_EXHAUSTED: E1000: {ours}") == 64 * GIB
    assert planner.demanded_bytes(f"RESOURCE_EXHAUSTED: {other}") == 512.5 * 2**20
    assert planner.demanded_bytes("INTERNAL: no (64.00G) exceeds") is None


def test_the_largest_batch_is_found_in_few_attempts():
    for start in (4, 64, 480, 4096):
        tried = []

        def attempt(batch: int, tried: list[int] = tried) -> planner.Plan:
            tried.append(batch)
            return fake(batch, GIB + batch * GIB * 0.0301)  # 498.3 images.

        good, bad = planner.largest_batch(attempt, start, 4)
        assert good.program and not bad.program
        assert good.batch_size <= 498 < bad.batch_size <= good.batch_size * 33 / 32
        assert all(batch % 4 == 0 for batch in tried)
        assert len(tried) <= 5


def test_a_compiler_that_saves_memory_when_it_runs_short_is_followed():
    def attempt(batch: int) -> planner.Plan:
        memory = batch * 0.1 * GIB
        return fake(batch, memory if memory < 15 * GIB else max(15 * GIB, memory / 2))

    good, bad = planner.largest_batch(attempt, 8, 4)
    assert 310 <= good.batch_size <= 320 < bad.batch_size  # 320 is half of 32 GiB.


def test_nothing_fits_is_an_error():
    with pytest.raises(
        UserError, match=r"batch of 4 fits v5e:2x2: b0 .* needs 20.00 of 16.00 GiB per device"
    ):
        planner.largest_batch(lambda batch: fake(batch, batch * 5.0 * GIB), 64, 4)


def test_a_batch_has_whole_groups_in_each_part(tiny):
    assert planner.batch_unit(tiny, 8) == 8
    tiny.accumulation_steps, tiny.model.batch_norm_group = 4, 16
    assert planner.batch_unit(tiny, 8) == 32
    tiny.model.batch_norm_scope = "group"
    assert planner.batch_unit(tiny, 8) == 512


def test_the_table_has_a_column_for_each_plan():
    console = rich.console.Console(width=140)
    with console.capture() as shown:
        console.print(planner.table([fake(512, 4 * GIB), fake(4096, 32 * GIB)]))
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:4]]
        for line in shown.get().splitlines()
        if line.startswith("│")
    }
    assert rows["model.remat"] == ["chosen", "chosen"]
    assert rows["batch"] == ["512, 128 per device", "4,096, 1,024 per device"]
    used, missing = rows["memory per device"]
    assert used == "4.00 of 16.00 GiB, 25%"
    assert missing == "32.00 of 16.00 GiB, 200%: DOES NOT FIT"
    assert rows["collectives per step"] == ["3 all-reduce, 21.0 MB", "-"]
    assert rows["step, at best"][0] == "100.0 ms, limited by memory"
    assert rows["images/s per chip, at best"][0] == "1,280"
    assert rows["350 epochs, at best"] == ["24.3 hours", "-"]
    plans = [fake(512, 17 * GIB), fake(512, GIB)]
    missing, made = json.loads(json.dumps([planner.to_json(each) for each in plans]))
    assert missing["program"] is None and missing["hours_at_best"] is None
    assert made["program"]["collectives"] == {"all-reduce": [3, 21_000_000]}
    assert made["images_per_second_at_best"] == 5120


def test_a_plan_has_what_the_compiled_program_says(tiny, monkeypatch):
    tiny.model.num_classes = 10
    monkeypatch.setattr(planner, "topology_mesh", lambda name: parallel.data_mesh())

    def lower(model, shapes, config, examples, mesh):
        # A state of 1,000 numbers, and 8 rows a device times a matrix: 2 x 8 x 1000 x 1000 FLOPs.
        whole, split = parallel.replicated(mesh), parallel.by_batch(mesh)
        shaped = [((1000,), whole), ((64, 1000), split), ((1000, 1000), whole)]
        arrays = [jax.ShapeDtypeStruct(shape, "float32", sharding=each) for shape, each in shaped]
        step = jax.jit(lambda s, x, w: s + (x @ w).sum(0), donate_argnums=0, out_shardings=whole)
        return step.lower(*arrays)

    monkeypatch.setattr(planner, "lower_train_step", lower)
    tiny.accumulation_steps = 4
    tiny.progressive.resolution = (24, 32, 16)
    planned = planner.plan(tiny, "tiny", "v5e:2x4", 1437, batch_size=64)
    assert (planned.devices, planned.batch_size, planned.resolution) == (8, 64, 32)
    assert planned.program.state_bytes == 4000
    assert planned.program.collectives == {"all-reduce": (1, 4000)}
    assert planned.program.flops == pytest.approx(4 * 16e6, rel=0.01)
    assert 4e6 < planned.program.moved_bytes < 4.3e6  # There is no loop: the matrix once.
    assert planned.memory_bytes >= 4e6 + 8 * 4000 + 4000


def test_a_plan_can_be_made_for_less_memory_than_the_chip_has(tiny, monkeypatch):
    tiny.model.num_classes = 10
    monkeypatch.setattr(planner, "topology_mesh", lambda name: parallel.data_mesh())
    asked = []

    class Lowered:
        def compile(self, compiler_options):
            asked.append(compiler_options)
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 2.50G of 1.50G hbm"
            )

    monkeypatch.setattr(planner, "lower_train_step", lambda *args: Lowered())
    planned = planner.plan(tiny, "tiny", "v5e:2x4", 1437, batch_size=64, memory_mib=1536)
    assert asked == [{"xla_tpu_max_hbm_size_mib": "1536"}]
    assert (planned.hbm_bytes, planned.memory_bytes) == (1.5 * GIB, 2.5 * GIB)
    assert planned.program is None
    planner.plan(tiny, "tiny", "v5e:2x4", 1437, batch_size=64)
    assert asked[1:] == [None]


def test_imagenet_need_not_be_there():
    from configs import imagenet as experiment

    config, examples, origin = planner.with_data(experiment.get_config("b0"))
    assert (examples, config.model.num_classes) == (imagenet.IMAGES["train"], 1000)
    assert "assumed" in origin
