"""What tests/test_hosts.py runs in two processes, without compiling anything."""

import time

import jax
from absl import flags
from ml_collections import ConfigDict

from effnet_jax import cli
from effnet_jax.errors import HostLost, UserError
from effnet_jax.run import processes as hosts

PART = flags.DEFINE_string("part", None, "")
cli.define_host_flags()


class Signals:
    """A signal that comes to host 1 when it has asked three times."""

    name = None

    def __call__(self) -> bool:
        raise AssertionError("only the agreement is asked")


def agreement(me: int) -> None:
    signals, asked = Signals(), 0
    stopped = hosts.agreed(signals)
    while not stopped():
        asked += 1
        if me == 1 and asked == 3:
            signals.name = "SIGTERM"
        # Host 0 is faster, and can't be more than two questions ahead: as with steps in flight.
        hosts._group._client.key_value_set(f"test/{me}/{asked}", "")
        if asked > 2:
            hosts._group._client.blocking_key_value_get(f"test/{1 - me}/{asked - 2}", 60_000)
        time.sleep(0.15 * me)
    print(f"stopped by {signals.name} after {asked}", flush=True)
    assert stopped()


def together(me: int) -> None:
    hosts.check_same("equal", lambda: {"seed": 1}, 60)
    try:
        hosts.check_same("start", lambda: {"seed": me, "code": "a"}, 60)
    except UserError as error:
        print(error, flush=True)
    agreement(me)
    try:
        if me == 0:
            hosts.barrier("compiled", 0.5)
    except HostLost as error:
        print(error, flush=True)


def main() -> None:
    cli.join_hosts()
    me = jax.process_index()
    hosts.watch(ConfigDict({"start_seconds": 60.0, "stall_seconds": 3.0, "lost_seconds": 6.0}))
    if PART.value == "together":
        together(me)
    for step in range(1, 400):
        hosts.at("step", step)
        if step == 30:
            print("on the way", flush=True)
        if PART.value == "stall" and me == 1 and step == 5:
            time.sleep(60)
        if PART.value == "error" and me == 1 and step == 5:
            raise UserError("cannot read image 7")
        if PART.value == "stall" and step == 8:
            time.sleep(60)
        time.sleep(0.05)


if __name__ == "__main__":
    cli.run_with_flags(main)
