"""Writes your sweeps, and the paper's tables and figures, from results to one HTML page.

Examples:
  effnet-jax report --results=results --out=runs/report
  effnet-jax report --networks runs/b0 runs/b3 --images cat.jpg dog.jpg --out=runs/maps

Reads the CSV files that sweeps, eval and the latency benchmark write. DIR/index.html has
everything; next to it are every figure as PNG and CSV, and every table as CSV. --networks draws
figure 7, activation maps of several networks side by side.
"""

import argparse
import dataclasses
import pathlib
import time

from effnet_jax import flags
from effnet_jax.errors import UserError
from effnet_jax.report import page, results

PARSER = flags.Parser(__doc__, buckets=("results",))
add = PARSER.group("input and output")
csvs = "CSV files, or folders that have some at any depth (default: results)"
add("--results", nargs="+", action="extend", type=flags.path, metavar="PATH", help=csvs)
add("--out", required=True, type=pathlib.Path, help=": a folder")
add("--evaluation", default=results.EVALUATION)
add("--data", metavar="NAME", help=" to show, by its name in the results (default: all)")
add = PARSER.group("figure 7")
networks = "networks to compare: workdirs or weight files"
add("--networks", nargs="+", action="extend", metavar="WORKDIR|FILE", help=networks)
images = " (default: some on which the run of the first network is evaluated)"
add("--images", nargs="+", action="extend", metavar="IMAGE", default=[], help=f"images{images}")
add("--method", default="cam", help=", as for effnet-jax explain")
add("--layer", help=" (default: the last)")


def write(out: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes the files of a report; removes files of an earlier report that it does not have."""
    ours = {f"{key}.{kind}" for key in page.SECTIONS for kind in ("png", "csv")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "index.html").exists():
            for name in ours - files.keys():
                (out / name).unlink(missing_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"can't write to --out={out}: {error.strerror}") from None


def main(args: argparse.Namespace) -> None:
    start, index = time.perf_counter(), args.out / "index.html"
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out={args.out} is a file; it must be a folder")
    if index.exists() and f'content="{page.GENERATOR}"' not in index.read_text(errors="replace"):
        raise UserError(f"{index} was not made by this command; choose another --out")
    found = results.read(args.results or [pathlib.Path("results")], args.evaluation, args.data)
    if args.networks:
        options = tuple(args.networks), tuple(args.images), args.method, args.layer
        found = dataclasses.replace(found, compared=results.Compared(*options))
    elif args.images or args.layer:
        raise UserError("--images and --layer apply to figure 7, which needs --networks")
    write(args.out, page.make_files(found))
    for line in found.skipped:
        print(f"skipped {line}")
    if found.repeated:
        print(f"left out {found.repeated} rows, replaced by newer ones with the same seed")
    print(f"{index}: {len(found.runs)} runs, {time.perf_counter() - start:.1f} s")
