"""Your sweeps, and the paper's tables and figures, from results: effnet-jax report --out=DIR.

Reads the CSVs that sweeps and the latency benchmark write, and writes DIR/index.html, one page with
everything, and next to it every figure as PNG and CSV and every table as CSV. --networks draws
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
add = PARSER.add_argument
csvs = "CSVs, or folders with CSVs at any depth; by default results"
add("--results", nargs="+", action="extend", type=flags.path, metavar="PATH", help=csvs)
add("--out", required=True, type=pathlib.Path, metavar="DIR", help="folder of the report")
counts = "whose top-1 counts, say val/raw; by default %(default)s"
add("--evaluation", default=results.EVALUATION, metavar="NAME/WEIGHTS", help=counts)
add("--data", metavar="NAME", help="show only this data set")
networks = "for figure 7: workdirs, or files of weights"
add("--networks", nargs="+", action="extend", metavar="WORKDIR|FILE", help=networks)
images = "for figure 7; by default some on which the first network's run is evaluated"
add("--images", nargs="+", action="extend", metavar="IMAGE", default=[], help=images)
add("--method", default="cam", help="for figure 7; as for effnet-jax explain")
add("--layer", help="for figure 7; by default the last")


def write(out: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes a report's files; removes those of an earlier report that this one lacks."""
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
        raise UserError(f"--out={args.out} is a file; it should be a folder")
    if index.exists() and f'content="{page.GENERATOR}"' not in index.read_text(errors="replace"):
        raise UserError(f"{index} was not made by this command; choose another --out")
    found = results.read(args.results or [pathlib.Path("results")], args.evaluation, args.data)
    if args.networks:
        options = tuple(args.networks), tuple(args.images), args.method, args.layer
        found = dataclasses.replace(found, compared=results.Compared(*options))
    elif args.images or args.layer:
        raise UserError("--images and --layer are for figure 7, which needs --networks")
    write(args.out, page.make_files(found))
    for line in found.skipped:
        print(f"skipped {line}")
    if found.repeated:
        print(f"left out {found.repeated} rows, repeated by newer ones of equal seed and settings")
    print(f"{index}: {len(found.runs)} runs, {time.perf_counter() - start:.1f} s")
