"""A profiled run: its trace opens, has the scopes, and its steps are those of any other run."""

import gzip
import json
import signal

import pytest

from configs import digits
from effnet_jax.errors import UserError
from effnet_jax.training import profiling, supervisor

STEPS = 12


@pytest.fixture
def config():
    config = digits.get_config("resnet18,w=0.1,d=0.1,r=16")  # Compiles fast.
    config.batch_size, config.eval_batch_size, config.log_steps = 64, 512, 4
    config.epochs, config.steps = None, STEPS
    config.eval_epochs = 10.0
    return config


def events_of(path):
    with gzip.open(path, "rt") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


def test_a_window_and_a_signal_each_write_a_trace_with_the_scopes(
    config, one_device, tmp_path, capsys
):
    told = tmp_path / "told"
    config.notify.command = f"sh -c 'echo $0 $1 > {told}'"
    config.profile.steps = "9:11"

    def ask(step, state, metrics):
        if step == 2:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    supervisor.train_and_evaluate(config, tmp_path, [ask])
    assert signal.getsignal(signal.SIGUSR1) is before
    assert told.read_text().startswith("stop the run in ")
    shown = capsys.readouterr().err
    assert "profile of steps 3 to 7" in shown
    assert "profile of steps 9 to 10" in shown
    assert shown.count("memory of a device") == 2
    tables = shown.partition("profile of steps 9")[0].partition("made from")[2].splitlines()
    rows = [line for line in tables if line.rstrip().endswith("%")]
    assert len(rows) == profiling.LISTED
    assert any("backward" in row and "stage" in row for row in rows), rows

    folders = sorted((tmp_path / "tensorboard/plugins/profile").iterdir())
    assert all(len(list(folder.glob("*.xplane.pb"))) == 1 for folder in folders)
    events = events_of(folders[0] / profiling.TRACE)
    steps = [event for event in events if event["name"] == "train"]
    assert sorted(int(event["args"]["step_num"]) for event in steps) == [3, 4, 5, 6, 7]
    assert {"data", "forward", "backward", "update"} <= {event.get("cat") for event in events}
    assert sum(event["name"] == "data" for event in events) == 5  # The waits for a batch.
    assert any(event["name"].startswith("forward stage") for event in events)


def test_names_follow_from_the_text_of_a_program():
    text = """HloModule jit_train_step
%inner (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %mul.1 = f32[8] multiply(%p, %p), metadata={op_name="jit(f)/backward/transpose(jvp(forward))/Network/stem/conv/mul"}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0), metadata={op_name="a"}
  %fusion.1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%inner
  ROOT %add.2 = f32[8]{0} add(%fusion.1, %a), metadata={op_name="jit(f)/update/add" stack_frame_id=3}
}
"""  # noqa: E501
    module, names = profiling.source_names(text)
    assert module == "jit_train_step"
    assert profiling.place(names["fusion.1"]) == ("backward", "stem/conv/mul")
    assert profiling.place(names["add.2"]) == ("update", "add")
    assert profiling.place(names["a"]) == ("other", "")
    older = "jit(train_step)/transpose(jvp(Network))/stem/conv/mul"
    assert profiling.place(older) == ("backward", "stem/conv/mul")


def test_a_window_is_within_the_run():
    assert list(profiling.window("3:5", 4)) == [3, 4]
    assert not profiling.window("", 4)
    for steps, message in (
        ("3:6", "ends with step 5, and the run has 4 steps; the last window is 2:5"),
        ("1:3", "first step of a run can't be profiled"),
        ("5:5", "is not FIRST:STOP"),
        ("all", "is not FIRST:STOP"),
    ):
        with pytest.raises(UserError, match=message):
            profiling.window(steps, 4)
