"""What tests/training/test_progressive.py kills: a run on one device, stuck at a training batch.

As in: stuck_run.py CONFIG.json WORKDIR BATCH
"""

import sys
import time
from collections.abc import Iterator

import jax

from effnet_jax import cli, parallel
from effnet_jax import config as config_lib
from effnet_jax.data import pipeline
from effnet_jax.training import supervisor


def main(config: str, workdir: str, stuck: str) -> None:
    read_ahead, data_mesh = pipeline.Batches.read_ahead, parallel.data_mesh

    def read_until(self, config, start=0, stop=None, processes=0) -> Iterator[pipeline.Batch]:
        for position, batch in enumerate(read_ahead(self, config, start, stop, processes), start):
            if self._length is None and position == int(stuck):  # Not the evaluation's.
                time.sleep(600)
            yield batch

    pipeline.Batches.read_ahead = read_until
    parallel.data_mesh = lambda: data_mesh(jax.devices()[:1])
    cli.use_compilation_cache()
    supervisor.train_and_evaluate(config_lib.load(config), workdir)


if __name__ == "__main__":
    main(*sys.argv[1:])
