"""One HTML page with all figures and tables, without scripts or references to other files."""

import base64
import io
import pathlib
import re
import tomllib

import jinja2

from effnet_jax import csv_rows
from effnet_jax.report import drawing, figures, paper, tables
from effnet_jax.report.results import Results, bare_name

GENERATOR = "effnet_jax.tools.report"
HERE = pathlib.Path(__file__).parent
TRANSFER = [
    "python train.py --config=configs/transfer.py:SET,MODEL --config.init.weights=FILE "
    "--config.data.data_dir=DIR --workdir=runs/SET_MODEL",
    "python eval.py --workdir=runs/SET_MODEL --csv=results/transfer.csv",
]
SECTIONS = tomllib.loads((HERE / "sections.toml").read_text(encoding="utf-8"))


def missing(key: str, results: Results) -> list[str]:
    """The commands that produce the results that a figure or table still lacks."""
    if key == "table4":
        command = "python -m benchmarks latency --csv=results/benchmark_latency.csv"
        return [] if results.latency else [command]
    if key in ("figure6", "table5"):
        has_rows = any(results.transfer(key, chosen) for chosen in paper.transfer().values())
        return [] if has_rows else TRANSFER
    run = {run.kind for run in results.runs if key != "table2" or paper.is_imagenet(run.data)}
    if key == "figure7" and results.compared:
        return []
    section = SECTIONS[key]
    config = section.get("config", "configs/cluttered_digits.py")
    sweeps = {bare_name(sweep): sweep for sweep in section.get("sweeps", ())}
    commands = [
        f"effnet-jax sweep --config={config} --sweep={sweep} "
        f"--workdir=runs/{name} --csv=results/{name}.csv"
        for name, sweep in sweeps.items()
        if name not in run
    ]
    if key == "figure7":
        commands.append("effnet-jax report --networks runs/table7/runs/* --out=DIR")
    return commands


def plain(cell: str) -> str:
    """A cell of a table as text for a CSV: without the commas of a count."""
    return cell.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", cell) else cell


def make_files(results: Results) -> dict[str, bytes]:
    """The files of the report by name: the page, figures as PNG and CSV, tables as CSV."""
    files, sections = {}, []
    wanted = {key: missing(key, results) for key in SECTIONS}
    # First the sections with all their results, then the others; both in the paper's order.
    for key in sorted(SECTIONS, key=lambda key: bool(wanted[key]) or key == "table1"):
        make = getattr(figures if key.startswith("figure") else tables, key)
        made, png = make(results), ""
        if isinstance(made, figures.Drawn):
            data = io.BytesIO()
            made.figure.savefig(data, format="png", dpi=drawing.DPI)
            files[f"{key}.png"] = data.getvalue()
            png = base64.b64encode(data.getvalue()).decode()
            cells = (row.values() for row in made.rows)
            files[f"{key}.csv"] = csv_rows.encode([made.rows[0], *cells])
        elif made:
            cells = (map(plain, row) for row in made.rows)
            files[f"{key}.csv"] = csv_rows.encode([made.columns, *cells])
        elif key.startswith("table") or not wanted[key]:
            continue  # The commands are in the section of the figure that precedes a table.
        section = {"key": key, "made": made, "png": png, "commands": wanted[key]}
        sections.append(SECTIONS[key] | section)
    text = (HERE / "page.html").read_text(encoding="utf-8")
    template = jinja2.Template(text, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = {"results": results, "sections": sections, "not_run": tables.NOT_RUN}
    return files | {"index.html": template.render(shown, generator=GENERATOR).encode()}
