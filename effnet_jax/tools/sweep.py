"""Runs a sweep: python -m effnet_jax.tools.sweep --config=FILE:ARG --sweep=NAME:ARG --workdir=DIR.

As in: python -m effnet_jax.tools.sweep --config=configs/cluttered_digits.py \
           --sweep=seeds:3,methods:2,4 --workdir=runs/methods

First it prints the table of runs, and with --dry_run nothing else. The same command again goes on:
finished runs are kept, begun ones continue from their checkpoint, failed ones are tried again.
"""

import pathlib

import rich.console
from absl import flags
from ml_collections import config_flags

from effnet_jax import cli, records
from effnet_jax.errors import RunsFailed, UserError
from effnet_jax.sweeps import launch, memory, watch
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.plan import make_plan

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment that the runs change.")
SWEEP = flags.DEFINE_string("sweep", None, "NAME or NAME:ARGUMENT of configs/sweeps, or FILE.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes.")
CSV = flags.DEFINE_string("csv", None, "The table of results; by default WORKDIR/results.csv.")
LAUNCHER = flags.DEFINE_enum("launcher", "local", ["local", "slurm"], "Where the runs go.")
PARALLEL = flags.DEFINE_integer(
    "parallel", None, "Runs at a time; by default one a GPU, or one a core.", lower_bound=1
)
SLURM = flags.DEFINE_string(
    "slurm", "", "submitit's parameters, as in timeout_min=240,gpus_per_node=1,slurm_partition=gpu."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the table of runs and stop.")
FORCE = flags.DEFINE_bool("force", False, "Start models that look too large for the memory.")


def main() -> None:
    for name, flag in (("sweep", SWEEP), ("workdir", WORKDIR)):
        if not flag.value:
            raise UserError(f"--{name} is required; see --help")
    folder, plan = Folder(WORKDIR.value), make_plan(CONFIG.value, SWEEP.value)
    local = LAUNCHER.value == "local"
    parts = launch.slots(PARALLEL.value) if local else []
    predicted = [memory.predict(planned.config) for planned in plan]
    console = rich.console.Console(width=None if records.ON_TERMINAL else 160)
    console.print(watch.plan_table(plan, folder, [need / 2**30 for need in predicted]))
    if minutes := watch.estimate(plan, folder):
        records.say(f"left: about {minutes / max(1, len(parts)):.0f} min, by the finished runs")
    if local and not FORCE.value:
        names = [planned.run.name for planned in plan]
        memory.check(dict(zip(names, predicted, strict=True)), len(parts))
    if DRY_RUN.value:
        return

    csv = pathlib.Path(CSV.value).expanduser() if CSV.value else folder.root / "results.csv"
    with folder.locked() as lock:
        folder.write_configs(plan)
        if local:
            shares = " | ".join(f"cores {slot.cores}, gpus {slot.gpus}" for slot in parts)
            records.say(f"{len(parts)} runs at a time: {shares}")
            failed = launch.run_all(
                plan, folder, lambda names: launch.Local(folder, names, parts, lock), csv
            )
        else:
            executor = launch.slurm_executor(folder, PARALLEL.value, SLURM.value)
            failed = launch.run_all(
                plan, folder, lambda names: launch.Submitted(folder, names, executor), csv
            )
    records.say(f"results: {csv}")
    if failed:
        lines = "\n".join(f"{name}: {why}; {folder.log(name)}" for name, why in failed.items())
        raise RunsFailed(
            f"{len(failed)} of {len(plan)} runs failed; the same command tries them again\n{lines}"
        )


if __name__ == "__main__":
    cli.run_with_flags(
        main, default_config=str(launch.ROOT / "configs" / "cluttered_digits.py"), computes=False
    )
