"""Our training or inference step in a separate process, for `throughput`.

python -m benchmarks.throughput_ours MODEL MODE OPERATIONS BATCH DTYPE [RESOLUTION] prints a line of
JSON when the step is compiled. For each number N in the input, it runs N batches and prints their
seconds. At the end of the input, it prints its peak memory.
"""

import json
import resource
import sys
import time
from typing import Any

START = time.perf_counter()
IMAGES = 1_281_167  # Images in an epoch of ImageNet.
SETS = ("auto", "plain", "cpu", "fused")


def serve(about: dict[str, Any], run_batch, peak_mib) -> None:
    """Answer the requests in the input, as described above.

    Args:
      about: a description of the contender, which is printed first.
      run_batch: a function that runs one batch to its end.
      peak_mib: a function that returns the peak memory so far.
    """
    run_batch()
    started = {"start_seconds": round(time.perf_counter() - START, 1)}
    print(json.dumps(about | started), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            run_batch()
            seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)
    print(json.dumps({"peak_mib": round(peak_mib(), 1)}), flush=True)


def resident_mib() -> float:
    """The peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    name: str, mode: str, operations: str, batch_size: str, dtype: str, resolution: str = ""
) -> None:
    import jax
    import numpy as np

    from effnet_jax import cli, parallel
    from effnet_jax import config as config_lib
    from effnet_jax.evaluation import make_eval_step
    from effnet_jax.training.state import abstract_state, fresh_state
    from effnet_jax.training.step import lower_train_step, random_key

    cli.use_compilation_cache()
    config = config_lib.get_config(name)
    config.batch_size = int(batch_size)
    config.model.num_classes = 1000
    config.model.dtype = dtype
    config.model.operations = operations
    if resolution:
        config.model.resolution = int(resolution)
    mesh = parallel.data_mesh()
    parallel.check_batch("batch_size", config.batch_size, parallel.data_shards(mesh))
    replicated = parallel.replicated(mesh)
    model, optimizer, shapes = abstract_state(config, IMAGES)
    size = model.architecture.resolution
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8)
    labels = rng.integers(0, 1000, config.batch_size, np.int32)
    mask = np.ones(config.batch_size, np.float32)
    batch = parallel.put_batch({"image": images, "label": labels, "mask": mask}, mesh)
    state = fresh_state(model, optimizer, size, random_key(0, "init", 0), replicated)
    if mode == "train":
        step = lower_train_step(model, shapes, config, IMAGES, mesh).compile()
        holder = [state]
        del state

        def run_batch():
            holder[0], metrics = step(holder[0], batch, np.uint32(0))
            jax.block_until_ready(metrics)

    else:
        weights = state.weights("raw")
        evaluate = jax.jit(make_eval_step(model, config.preprocess), out_shardings=replicated)
        step = evaluate.lower(*weights, batch).compile()

        def run_batch():
            jax.block_until_ready(step(*weights, batch))

    def peak_mib() -> float:
        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / 2**20 if stats else resident_mib()

    about = {"version": f"jax {jax.__version__}", "resolution": size}
    serve(about | {"device": jax.devices()[0].device_kind}, run_batch, peak_mib)


if __name__ == "__main__":
    main(*sys.argv[1:])
