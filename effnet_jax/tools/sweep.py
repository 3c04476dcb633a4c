"""Trains every run of a sweep, and collects the results in one table.

Examples:
  effnet-jax sweep --sweep="optimizer.sgd.learning_rate=0.1,0.2 seed=0,1" --workdir=runs/rates
  effnet-jax sweep --config=digits --sweep=seeds:3,methods:2,4 --workdir=runs/methods --dry_run

--sweep takes values of config keys, of which every combination is a run; or the NAME of a sweep in
configs/sweeps, or FILE.py with a function get_sweep, both with an optional :ARGUMENT. The table of
runs is printed first. The same command continues a sweep: finished runs are kept, interrupted ones
resume, and failed ones are tried again.
"""

import argparse
import pathlib

from effnet_jax import flags
from effnet_jax.errors import RunsFailed
from effnet_jax.run import writers
from effnet_jax.sweeps import launch as launching
from effnet_jax.sweeps.folder import Folder
from effnet_jax.sweeps.runs import make_schedule
from effnet_jax.tools import show


def parser(doc: str) -> flags.Parser:
    """The parser of a command that launches the runs of a sweep."""
    parser = flags.Parser(doc, config="cluttered_digits", computes=False, buckets=("csv",))
    add = parser.group("launch")
    add("--workdir", required=True)
    add("--csv", type=flags.path, help=", one per run (default: DIR/results.csv)")
    add("--launcher", choices=("local", "slurm"), default="local", help="where the runs go")
    parallel = "runs at a time (default: one per GPU, or one per core)"
    add("--parallel", type=flags.count, metavar="N", help=parallel)
    slurm = "parameters of submitit, such as timeout_min=240,gpus_per_node=1"
    add("--slurm", default="", metavar="KEY=VALUE,...", help=slurm)
    add("--dry_run", action="store_true", help=": the table of runs")
    return parser


PARSER = parser(__doc__)
add = PARSER.group("sweep")
runs = "runs to train: KEY=VALUE,VALUE ... or NAME:ARGUMENT or FILE.py:ARGUMENT"
add("--sweep", required=True, metavar="SWEEP", help=runs)


def launch(args: argparse.Namespace, sweep: str) -> pathlib.Path | None:
    """Prints the schedule of a sweep and runs it.

    Returns the file of the results, or None for a dry run. Raises UserError before any run starts,
    and RunsFailed at the end if some runs failed.
    """
    folder = Folder(args.workdir)
    schedule = make_schedule(args.config, sweep, args.experiment)
    local = args.launcher == "local"
    shares = launching.slots(args.parallel) if local else []
    show(folder.table(schedule))
    if minutes := folder.estimate(schedule):
        minutes /= max(1, len(shares))
        writers.say(f"about {minutes:.0f} min left, judging by the finished runs")
    if args.dry_run:
        return None
    csv = args.csv or folder.root / "results.csv"
    with folder.lock() as lock:
        left = [each.run.name for each in schedule if folder.done(each.run.name) is None]
        folder.write_results(schedule, csv)
        folder.write_configs(schedule)
        if local:
            each = " | ".join(f"cores {slot.cores}, gpus {slot.gpus}" for slot in shares)
            writers.say(f"{len(shares)} runs at a time: {each}")
            context = launching.local(folder, left, shares, lock.descriptor)
        else:
            context = launching.slurm(folder, left, args.parallel, args.slurm)
        with context as jobs:
            failed = launching.follow(schedule, folder, jobs, csv)
    if left:
        show(folder.table(schedule))
    writers.say(f"results: {csv}")
    if failed:
        text = f"{len(failed)} of {len(schedule)} runs failed; the same command tries them again"
        lines = (f"{name}: {why}; {folder.log(name)}" for name, why in failed.items())
        raise RunsFailed("\n".join([text, *lines]))
    return csv


def main(args: argparse.Namespace) -> None:
    launch(args, args.sweep)
