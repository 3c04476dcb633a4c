"""What tests/run/test_processes.py runs in two processes, without compiling anything."""

import time

from ml_collections import ConfigDict

from effnet_jax import cli, flags
from effnet_jax.errors import ProcessLost, UserError
from effnet_jax.run import processes as processes_lib

processes_lib.BEAT_SECONDS = 0.25
LIMITS = ConfigDict({"start_seconds": 60.0, "stall_seconds": 2.0, "lost_seconds": 2.0})


class Signals:
    """A signal that comes to process 1 when it has asked three times."""

    name = None

    def __call__(self) -> bool:
        raise AssertionError("only the agreement is asked")


def agree(processes) -> None:
    me, signals, asked = processes.index, Signals(), 0
    stopped = processes.agreed(signals)
    while not stopped():
        asked += 1
        if me == 1 and asked == 3:
            signals.name = "SIGTERM"
        # Process 0 is faster, and at most two questions ahead: as with steps in flight.
        processes._client.key_value_set(f"test/{me}/{asked}", "")
        if asked > 2:
            processes._client.blocking_key_value_get(f"test/{1 - me}/{asked - 2}", 60_000)
        time.sleep(0.1 * me)
    print(f"stopped by {signals.name} after {asked}", flush=True)
    assert stopped()


def together(processes) -> None:
    me = processes.index
    processes.check_same("equal", lambda: {"seed": 1}, 60)
    try:
        processes.check_same("start", lambda: {"seed": me, "code": "a"}, 60)
    except UserError as error:
        print(error, flush=True)
    assert processes.as_first("number", lambda: me + 7, 60) == 7
    while len(shared := processes.share(me + 0.5)) < 2:
        time.sleep(0.05)
    assert shared == {0: 0.5, 1: 1.5}
    agree(processes)
    try:
        if me == 0:
            processes.barrier("compiled", 0.5)
    except ProcessLost as error:
        print(error, flush=True)


def main(args) -> None:
    processes, case = args.processes, args.case
    # The stalled process 1 leaves it to process 0 to notice.
    processes.watch(LIMITS if processes.is_first else ConfigDict({**LIMITS, "stall_seconds": 60.0}))
    if case == "together":
        together(processes)
    for step in range(1, 2000):
        processes.at("step", step)
        if step == 30:
            print("on the way", flush=True)
        if case == "stall" and step == (8 if processes.is_first else 5):
            time.sleep(60)
        if case == "error" and not processes.is_first and step == 5:
            raise UserError("cannot read image 7")
        time.sleep(0.05)


if __name__ == "__main__":
    parser = flags.Parser(__doc__, joins=True)
    parser.add_argument("--case")
    cli.run(main, parser)
