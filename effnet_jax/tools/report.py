"""The paper's tables and figures from results: python -m effnet_jax.tools.report --out=DIR.

Reads the CSVs that sweeps and the latency benchmark write, and makes DIR/index.html, one page with
everything in it, and beside it every figure as PNG and CSV and every table as CSV.
"""

import argparse
import csv
import io
import pathlib
import re
import time
from collections.abc import Sequence

from effnet_jax import cli
from effnet_jax.errors import UserError
from effnet_jax.report import drawing, page, results
from effnet_jax.report.figures import FIGURES
from effnet_jax.report.results import Results
from effnet_jax.report.tables import TABLES


def plain(cell: str) -> str:
    """A cell for a CSV: counts without the commas that help people."""
    return cell.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", cell) else cell


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def check_out(out: pathlib.Path) -> None:
    """So that nothing but an earlier report is overwritten."""
    index = out / "index.html"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; it should be a folder")
    if index.exists() and page.GENERATOR not in index.read_text(errors="replace"):
        raise UserError(f"{index} was not made by this command; choose another --out")


def make(found: Results) -> dict[str, bytes]:
    """Every file of the report by its name."""
    drawn = {key: entry.draw(found) for key, entry in FIGURES.items()}
    drawn = {key: figure for key, figure in drawn.items() if figure}
    tables = {key: entry.make(found) for key, entry in TABLES.items()}
    tables = {key: table for key, table in tables.items() if table}
    pngs = {}
    for key, figure in drawn.items():
        data = io.BytesIO()
        figure.figure.savefig(data, format="png", dpi=drawing.DPI)
        pngs[key] = data.getvalue()
    texts = {"index.html": page.build(found, drawn, pngs, tables)}
    for key, figure in drawn.items():
        rows = [list(row.values()) for row in figure.rows]
        texts[f"{key}.csv"] = csv_text(list(figure.rows[0]), rows)
    for key, table in tables.items():
        texts[f"{key}.csv"] = csv_text(table.columns, [list(map(plain, row)) for row in table.rows])
    files = {name: text.encode() for name, text in texts.items()}
    return files | {f"{key}.png": png for key, png in pngs.items()}


def write(out: pathlib.Path, files: dict[str, bytes]) -> None:
    """Writes a report's files; those of an earlier one that this one lacks are removed."""
    ours = {f"{key}.{kind}" for key in (*FIGURES, *TABLES) for kind in ("png", "csv")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / "index.html").exists():
            for name in ours - files.keys():
                (out / name).unlink(missing_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data)
    except OSError as error:
        raise UserError(f"can't write to --out={out}: {error.strerror}") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m effnet_jax.tools.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results",
        nargs="+",
        action="extend",
        type=pathlib.Path,
        metavar="PATH",
        help="CSVs, or folders with CSVs at any depth; by default results",
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--weights", choices=results.WEIGHTS, default="ema")
    parser.add_argument("--data", metavar="NAME", help="show this data set alone")
    args = parser.parse_args()

    start = time.perf_counter()
    check_out(args.out)
    found = results.read(args.results or [pathlib.Path("results")], args.weights, args.data)
    write(args.out, make(found))
    print(f"{args.out / 'index.html'}: {len(found.runs)} runs, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    cli.run(main, computes=False)
