"""The user's command hears of each event, and can't hold a run up."""

import pytest

from effnet_jax.errors import Interrupted, NonFiniteLossError, UserError
from effnet_jax.run.notify import Notifier


@pytest.fixture
def heard(tmp_path):
    """A command, and what it was called with."""
    script, log = tmp_path / "tell me", tmp_path / "log"
    script.write_text(f'#!/bin/sh\necho "$# $1: $2" >> "{log}"\n')
    script.chmod(0o755)
    return f'"{script}"', lambda: log.read_text().splitlines() if log.exists() else []


def test_each_event_calls_the_command_with_its_message(heard, tmp_path):
    command, log = heard
    notify = Notifier(command, is_first=True)
    with notify.at_end(tmp_path):
        notify("alarm", "no checkpoint since step 5; $(touch oops)")
    with pytest.raises(NonFiniteLossError), notify.at_end(tmp_path):
        raise NonFiniteLossError("loss is nan at step 7", 7)
    with pytest.raises(Interrupted), notify.at_end(tmp_path):
        raise Interrupted("stopped by SIGTERM")
    assert sorted(log()) == [
        "2 alarm: no checkpoint since step 5; $(touch oops)",
        "2 loss: loss is nan at step 7",
        "2 stop: stopped by SIGTERM",
        f"2 stop: the run in {tmp_path} is done",
    ]
    with Notifier(command, is_first=False).at_end(tmp_path):
        pass
    assert len(log()) == 4


def test_a_command_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no program 'nosuch' on PATH"):
        Notifier("nosuch --to=me", is_first=True)
    with pytest.raises(UserError, match="No closing quotation"):
        Notifier("echo 'a", is_first=True)
    Notifier("", is_first=True)("stop", "nothing is called")
