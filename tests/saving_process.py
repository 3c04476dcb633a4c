"""What tests/test_checkpoint.py runs in two processes: full disks, without training."""

import contextlib
import pathlib
import resource
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnet_jax import checkpoint, cli, flags
from effnet_jax import config as config_lib
from effnet_jax.checkpoint import Checkpoints

SIZE = 200_000


@contextlib.contextmanager
def full_disk(on: bool) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if on:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main(args) -> None:
    processes, me = args.processes, args.processes.index
    config = config_lib.get_config("b0")
    config.processes.update(start_seconds=40.0, stall_seconds=20.0)
    processes.watch(config.processes)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))

    def state(step: int) -> dict:
        noise = np.random.default_rng(step).normal(size=SIZE).astype(np.float32)
        return {"params": jax.make_array_from_callback((SIZE,), sharding, noise.__getitem__)}

    def say(text: str) -> None:
        print(text, flush=True)

    checkpoint.say = say
    with Checkpoints(args.workdir, config.checkpoint, processes=processes) as checkpoints:
        # On both, on none, on the first, on the second, and then there is room again.
        for step, full in ((10, (0, 1)), (20, ()), (30, (0,)), (40, (1,)), (50, ())):
            processes.at("save", step)
            with full_disk(me in full):
                checkpoints.save(step, state(step))
                checkpoints.settle()
            # The disk of a late process may still be full.
            processes.barrier("settled", 20)
            say(f"after {step}: {checkpoints.steps()}, good {checkpoints.good_step}")
        checkpoints.wait()
        read = checkpoint._read

        def read_badly(path: pathlib.Path, *args) -> dict:
            if me == 1 and path.name == "50":
                raise OSError("stale file handle")
            return read(path, *args)

        checkpoint._read = read_badly
        restored = checkpoints.restore(
            {"params": jax.ShapeDtypeStruct((SIZE,), np.float32)}, sharding
        )
        say(f"restored {checkpoints.good_step}")
        for shard, wanted in zip(
            restored["params"].addressable_shards,
            state(20)["params"].addressable_shards,
            strict=True,
        ):
            np.testing.assert_array_equal(shard.data, wanted.data)


if __name__ == "__main__":
    parser = flags.Parser(__doc__, joins=True)
    parser.add_argument("--workdir", type=pathlib.Path)
    cli.run(main, parser)
