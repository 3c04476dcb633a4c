"""One HTML page with all figures and tables in it: no script, no file or address outside it."""

import base64
import html
import string
from collections.abc import Iterable

from effnet_jax.report.figures import FIGURES, TRANSFER, Drawn, is_imagenet
from effnet_jax.report.results import Results, bare_name
from effnet_jax.report.tables import NOT_RUN, TABLES, Table

GENERATOR = '<meta name="generator" content="effnet_jax.tools.report">'
ORDER = ("table1", "figure1", "table2", "figure3", "figure4", "table3", "table4", "figure5")
ORDER += ("table5", "figure6", "table7", "figure_grid", "table_grid", "figure8", "table_methods")
COMPANIONS = ("table_grid", "table_methods")  # Tables of the figure before them.
TRANSFERS = ("figure6", "table5")
SHOWN_WIDTH = 620  # CSS pixels of a figure, where the screen has them.

PAGE = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$generator
<title>EfficientNet: tables and figures</title>
<style>
:root { color-scheme: light dark; --line: #ccc; --soft: #f3f3f3; --quiet: #555; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #222; --quiet: #aaa; }
  body { background: #121212; color: #e8e8e8; }
  img { background: #fff; }
}
body { font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 0 1rem 3rem; }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
img { max-width: 100%; height: auto; display: block; border-radius: 4px; }
p.note, dl { color: var(--quiet); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th, td { text-align: left; white-space: nowrap; }
th { background: var(--soft); vertical-align: bottom; white-space: normal; min-width: 2.6rem; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--soft); }
td.no { color: var(--quiet); font-style: italic; }
pre { background: var(--soft); padding: .5rem .7rem; font-size: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>EfficientNet: the paper's tables and figures, beside what was run</h1>
<p>The paper is arXiv 1905.11946. Costs are counted from the networks; accuracies that were measured
here are rounded down.</p>
<dl>
$facts
</dl>
<nav>
$links
</nav>
$sections
</body>
</html>
""")


def commands(key: str, sweeps: Iterable[str]) -> list[str]:
    """What a person would run to fill a figure or a table."""
    if key == "table4":
        return ["python -m benchmarks.__main__ latency --csv=results/benchmark_latency.csv"]
    made = []
    for sweep in sweeps:
        name, config = bare_name(sweep), "configs/cluttered_digits.py"
        if name == "phi":
            config = "configs/imagenet.py"
        if key in TRANSFERS:
            config = "CONFIG_OF_A_DATA_SET"
        made.append(
            f"python -m effnet_jax.tools.sweep --config={config} --sweep={sweep} "
            f"--workdir=runs/{name} --csv=results/{name}.csv"
        )
    return made


def missing(key: str, results: Results) -> list[str]:
    """Commands for what a figure or table lacks."""
    if key == "table4":
        return [] if results.latency else commands(key, ())
    entry = FIGURES.get(key) or TABLES[key]
    transfer = key in TRANSFERS
    shown = [run for run in results.runs if transfer or results.data in (None, run.data)]
    if transfer:
        shown = [run for run in shown if run.data.split("/")[0] in TRANSFER.values()]
    elif key == "table2":
        shown = [run for run in shown if is_imagenet(run.data)]
    kinds = {run.kind for run in shown}
    return commands(key, [sweep for sweep in entry.sweeps if bare_name(sweep) not in kinds])


def was_run(key: str, results: Results) -> bool:
    """Whether there are results for a figure or table, all that it could hold."""
    key = "figure6" if key in TRANSFERS else key
    return key != "table1" and not missing(key, results)


def facts(results: Results) -> list[tuple[str, str]]:
    """What the page was made from."""
    runs = results.runs

    def listed(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(filter(None, values)))) or "none"

    rows = [
        ("files", listed(map(str, results.files))),
        ("runs", f"{len(runs)}, and {len(results.latency)} rows of latency"),
        ("data sets", listed(run.data for run in runs)),
        ("weights", "averaged (EMA)" if results.weights == "ema" else "raw"),
    ]
    if results.data:
        rows.append(("shown alone", results.data))
    if results.repeated:
        rows.append(("left out", f"{results.repeated} rows, repeated by newer ones of equal seed"))
    made = [
        *((run.commit, run.device, run.jax, run.time) for run in runs),
        *(
            tuple(row.get(k) or "" for k in ("commit", "device", "jax", "time"))
            for row in results.latency
        ),
    ]
    if made:
        commits, devices, versions, times = zip(*made, strict=True)
        rows += [
            ("commits", listed(commits)),
            ("devices", listed(devices)),
            ("jax", listed(versions)),
            ("newest row", max(times)),
        ]
    return rows


def table_html(table: Table) -> str:
    def cell(text: str) -> str:
        attribute = ' class="no"' if text == NOT_RUN else ""
        return f"<td{attribute}>{html.escape(text)}</td>"

    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
        f'</div>\n<p class="note">{html.escape(table.note)}</p>'
    )


def figure_html(drawn: Drawn, title: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<img src="{source}" width="{SHOWN_WIDTH}" alt="{html.escape(title)}">\n'
        f'<p class="note">{html.escape(drawn.caption)}</p>'
    )


def title_of(key: str, tables: dict[str, Table]) -> str:
    if key in FIGURES:
        return FIGURES[key].title
    return tables[key].title if key in tables else TABLES[key].title


def build(
    results: Results, figures: dict[str, Drawn], pngs: dict[str, bytes], tables: dict[str, Table]
) -> str:
    """The page.

    Args:
      results: all that was read.
      figures, tables: those that there is something for, by key.
      pngs: of the figures.
    """
    sections, links = [], []
    # What was run first, then what the paper alone has, each in the paper's order.
    for key in sorted(ORDER, key=lambda key: not was_run(key, results)):
        if key in COMPANIONS and key not in tables:
            continue
        title = title_of(key, tables)
        parts = [f'<h2 id="{key}">{html.escape(title)}</h2>']
        if key in figures:
            parts.append(figure_html(figures[key], title, pngs[key]))
        elif key in tables:
            parts.append(table_html(tables[key]))
        if wanted := missing(key, results):
            lines = html.escape("\n".join(wanted))
            parts.append(f'<p class="note">Not run; this would:</p>\n<pre>{lines}</pre>')
        sections.append("\n".join(parts))
        links.append(f'<a href="#{key}">{html.escape(title.partition(":")[0])}</a>')
    named = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts(results))
    return PAGE.substitute(
        generator=GENERATOR,
        facts="\n".join(named),
        links="\n".join(links),
        sections="\n".join(sections),
    )
