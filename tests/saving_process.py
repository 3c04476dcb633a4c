"""What tests/test_checkpoint.py runs in two processes: disks that are full, and no training."""

import contextlib
import pathlib
import resource
from collections.abc import Iterator

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from effnet_jax import cli
from effnet_jax import config as default
from effnet_jax.checkpoint import Checkpoints
from effnet_jax.run import processes as hosts

WORKDIR = flags.DEFINE_string("workdir", None, "")
cli.define_host_flags()
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


def main() -> None:
    cli.join_hosts()
    me = jax.process_index()
    config = default.get_config("b0")
    config.processes.update(start_seconds=40.0, stall_seconds=20.0)
    hosts.watch(config.processes)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))

    def state(step: int) -> dict:
        noise = np.random.default_rng(step).normal(size=SIZE).astype(np.float32)
        return {"params": jax.make_array_from_callback((SIZE,), sharding, noise.__getitem__)}

    def say(text: str) -> None:
        print(text, flush=True)

    with Checkpoints(pathlib.Path(WORKDIR.value), config.checkpoint, say=say) as checkpoints:
        # On both, on none, on the first, on the second, and then there is room again.
        for step, full in ((10, (0, 1)), (20, ()), (30, (0,)), (40, (1,)), (50, ())):
            hosts.at("save", step)
            with full_disk(me in full):
                checkpoints.save(step, state(step))
                checkpoints.settle()
            # The disk of a host that is late may still be full.
            hosts.barrier("settled", 20)
            say(f"after {step}: {checkpoints.steps()}, good {checkpoints.good_step}")
        checkpoints.wait()
        read = checkpoints._read

        def read_badly(step: int, *args) -> dict:
            if me == 1 and step == 50:
                raise OSError("stale file handle")
            return read(step, *args)

        checkpoints._read = read_badly
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
    cli.run_with_flags(main)
