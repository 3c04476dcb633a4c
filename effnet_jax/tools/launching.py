"""Flags and course of the commands that launch runs: sweep and search_scaling."""

import pathlib

import rich.console
from absl import flags
from ml_collections import config_flags

from effnet_jax.errors import RunsFailed, UserError
from effnet_jax.run import writers
from effnet_jax.sweeps import launch as launchers
from effnet_jax.sweeps import memory, watch
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.schedule import Planned, make_plan

DEFAULT_CONFIG = str(launchers.ROOT / "configs" / "cluttered_digits.py")
CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment that the runs change.")
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


def launch(sweep: str) -> tuple[list[Planned], Folder, pathlib.Path] | None:
    """Prints the plan of a sweep and runs it; None for a dry run.

    Returns:
      The plan, its folder, and the CSV with the results.

    Raises:
      UserError: before anything starts.
      RunsFailed: some runs failed; the others are finished.
    """
    if not WORKDIR.value:
        raise UserError("--workdir=DIR is required; see --help")
    experiment = config_flags.get_config_filename(flags.FLAGS["config"])
    experiment = experiment.removeprefix(f"{launchers.ROOT}/")
    folder, plan = Folder(WORKDIR.value), make_plan(CONFIG.value, sweep, experiment)
    local = LAUNCHER.value == "local"
    parts = launchers.slots(PARALLEL.value) if local else []
    predicted = {planned.run.name: memory.predict(planned.config) for planned in plan}
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160  # A pipe or a file has no width; 80 columns would cut numbers.
    console.print(watch.plan_table(plan, folder, predicted))
    if minutes := watch.estimate(plan, folder):
        writers.say(f"left: about {minutes / max(1, len(parts)):.0f} min, by the finished runs")
    left = {name: need for name, need in predicted.items() if folder.done(name) is None}
    if local and left and not FORCE.value:
        memory.check(left, len(parts))
    if DRY_RUN.value:
        return None

    csv = pathlib.Path(CSV.value).expanduser() if CSV.value else folder.root / "results.csv"
    with folder.locked() as lock:
        folder.check_csv(csv)
        folder.write_configs(plan)
        if local:
            shares = " | ".join(f"cores {slot.cores}, gpus {slot.gpus}" for slot in parts)
            writers.say(f"{len(parts)} runs at a time: {shares}")

            def start(names: list[str]) -> launchers.Launcher:
                return launchers.Local(folder, names, parts, lock)
        else:
            executor = launchers.slurm_executor(folder, PARALLEL.value, SLURM.value)

            def start(names: list[str]) -> launchers.Launcher:
                return launchers.Submitted(folder, names, executor)

        failed = launchers.run_all(plan, folder, start, csv)
    if csv.exists():
        writers.say(f"results: {csv}")
    if failed:
        lines = "\n".join(f"{name}: {why}; {folder.log(name)}" for name, why in failed.items())
        raise RunsFailed(
            f"{len(failed)} of {len(plan)} runs failed; the same command tries them again\n{lines}"
        )
    return plan, folder, csv
