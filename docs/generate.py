"""The pages of the site that are made from the code, and the hooks by which mkdocs reads them.

`pages()` returns them by name: the README as the first page; the keys of `effnet_jax/config.py`;
the commands with their flags; the docstrings of the public names; the notebook; and the files
outside docs/ that pages link to. The tests call it too, without mkdocs.
"""

import ast
import html
import importlib
import inspect
import io
import json
import os
import pathlib
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

DOCS = pathlib.Path(__file__).resolve().parent
ROOT = DOCS.parent

# The public names: all public functions and classes of a module, or those listed.
PUBLIC = {
    "effnet_jax": (),
    "effnet_jax.config": ("get_config", "evaluation", "load", "save", "validate", "for_evaluation"),
    "effnet_jax.experiments": ("read",),
    "effnet_jax.training.supervisor": (),
    "effnet_jax.training.optimizer": ("build_optimizer", "learning_rate", "multipliers"),
    "effnet_jax.training.state": ("TrainState", "init_state"),
    "effnet_jax.models": (),
    "effnet_jax.models.network": ("Network", "Architecture", "init_variables"),
    "effnet_jax.models.backbone": ("Backbone",),
    "effnet_jax.scaling": (),
    "effnet_jax.data.preprocess": (),
    "effnet_jax.data.sources": ("Source", "TfdsSource", "open_source"),
    "effnet_jax.data.folders": ("FolderSource",),
    "effnet_jax.data.pipeline": ("TrainImages", "train_batches", "eval_batches"),
    "effnet_jax.evaluation": ("evaluate", "Evaluator"),
    "effnet_jax.metrics": (),
    "effnet_jax.weights": (),
    "effnet_jax.explain": (),
    "effnet_jax.export": (),
    "effnet_jax.probe": (),
    "effnet_jax.run.writers": ("Writer", "read_metrics", "read_scores"),
    "effnet_jax.errors": (),
}
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")


def pages() -> dict[str, str]:
    """The markdown of every generated page, by its path in the site."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    made = {
        "index.md": home(),
        "reference/config.md": config_reference(),
        "reference/commands.md": commands_reference(),
        "reference/api.md": api_reference(),
    }
    if (DOCS / "tour.ipynb").exists():
        made["tour.md"] = notebook(json.loads((DOCS / "tour.ipynb").read_text()))[0]
    texts = [made["index.md"], *(path.read_text() for path in DOCS.glob("*.md"))]
    return made | dict(source_page(path) for text in texts for path in outside(text))


def home() -> str:
    """The README, with links as they are from docs/."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r'(href|src)="docs/', r'\1="', text)
    text = re.sub(r'(href="[^":]+)\.md\b', r"\1.html", text)

    def from_docs(match: re.Match) -> str:
        path, anchor = match.group(1), match.group(2) or ""
        inside = path.startswith("docs/")
        return (path.removeprefix("docs/") if inside else f"../{path}") + anchor

    return LINK.sub(from_docs, text)


def outside(text: str) -> Iterator[pathlib.Path]:
    """The files outside docs/ that a page links to."""
    for match in LINK.finditer(text):
        path = (DOCS / match.group(1)).resolve()
        if match.group(1).startswith("../") and path.is_file() and path.is_relative_to(ROOT):
            yield path


def source_page(path: pathlib.Path) -> tuple[str, str]:
    """The name and the markdown of a page that shows a file of the repository."""
    name, text = str(path.relative_to(ROOT)), path.read_text()
    if path.suffix == ".md":
        return f"source/{name}", LINK.sub(r"#", text)
    kind = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".toml": "toml"}.get(path.suffix, "")
    return f"source/{name}.md", f"# {name}\n\n````{kind}\n{text}````\n"


def link_sources(text: str) -> str:
    """Markdown of docs/ with links to files outside it turned to their pages in the site."""

    def to_page(match: re.Match) -> str:
        path, anchor = match.group(1), match.group(2) or ""
        file = (DOCS / path).resolve()
        if not path.startswith("../") or not file.is_file():
            return path + anchor
        if file == ROOT / "effnet_jax/config.py":
            return "reference/config.md" + anchor
        return source_page(file)[0] + anchor if file != ROOT / "README.md" else "index.md"

    return LINK.sub(to_page, text)


def comments(text: str) -> tuple[dict[int, str], dict[int, str]]:
    """The comments of a Python file by line: those with a line of their own, and the others."""
    alone, beside = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            where = beside if token.line[: token.start[1]].strip() else alone
            where[token.start[0]] = token.string.lstrip("# ")
    return alone, beside


def above(alone: dict[int, str], line: int) -> str:
    """The comment on the lines directly above a line."""
    found = []
    while line - 1 in alone:
        line -= 1
        found.insert(0, alone[line])
    return " ".join(found)


def limits(value: Any) -> str:
    """What a key takes, from its entry in the schema."""
    from effnet_jax import config

    if isinstance(value, config.Choice | config.Several):
        several = "some of " if isinstance(value, config.Several) else ""
        return several + ", ".join(f"`{option}`" for option in value.options)
    if isinstance(value, config.Number | config.Interval):
        low, two = getattr(value, "low", 0), isinstance(value, config.Interval)
        most = " or more" if value.high == float("inf") else f" to {value.high:,}"
        return f"{'two numbers, ' if two else ''}{low:,}{most}"
    kind = value if isinstance(value, type) else type(value)
    return {bool: "`True`, `False`", str: "text", dict: "a section", tuple: "a tuple"}.get(
        kind, "a number"
    )


def code(text: str) -> str:
    """Code for a cell of a table, where a backtick does not protect a bar."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def config_reference() -> str:
    """Every key of a config: default, what it takes, and the comment next to it."""
    from effnet_jax import config

    text = (ROOT / "effnet_jax/config.py").read_text()
    alone, beside = comments(text)
    in_steps = {steps: epochs for epochs, steps in config.DURATIONS.items()}
    lines = [
        "# Configuration reference\n",
        "Made from `effnet_jax/config.py`. `--config.KEY=VALUE` sets a key on the command line,",
        "`config.KEY = VALUE` in an experiment ([configs](../configs.md)); `None` is not set.\n",
    ]

    def table(prefix: str, node: ast.Dict, values: dict[str, Any]) -> None:
        lines.append("| key | default | takes | meaning |\n|---|---|---|---|")
        sections = []
        for key, each in zip(node.keys, node.values, strict=True):
            value, name = values[key.value], f"{prefix}{key.value}"
            said = f"{above(alone, key.lineno)} {beside.get(each.end_lineno, '')}".strip()
            if isinstance(value, dict) and value:
                said = f"{above(alone, key.lineno)} {beside.get(key.lineno, '')}".strip()
                sections.append((name, said, each, value))
                continue
            default = None if isinstance(value, type) else getattr(value, "default", value)
            if name in in_steps:
                said = f"`{in_steps[name]}` in steps; one of the two is `None`. {said}"
            said = said.replace("|", "\\|").replace("*", "\\*")
            default = re.sub(r"\d\.\d{6,}", lambda n: f"{float(n[0]):.4g}", repr(default))
            cells = f'<a id="{name}"></a>`{name}`', code(default), limits(value), said
            lines.append(f"| {' | '.join(cells)} |")
        for name, said, each, value in sections:
            lines.append(f"\n## {name}\n\n{said}\n")
            table(f"{name}.", each, value)

    names = {"SCHEMA": ("", config.SCHEMA), "EVALUATION": ("evaluations.NAME", config.EVALUATION)}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and (found := names.get(node.targets[0].id)):
            prefix, values = found
            if prefix:
                lines.append(f"\n## {prefix}\n\nAn entry of `config.evaluations`.\n")
            table(f"{prefix}." if prefix else "", node.value, values)
    return "\n".join(lines) + "\n"


def tools() -> dict[str, Any]:
    """The parser of each command, by the words that start it."""
    found = {}
    for path in sorted((ROOT / "effnet_jax/tools").glob("[!_]*.py")):
        parser = importlib.import_module(f"effnet_jax.tools.{path.stem}").PARSER
        found[f"effnet-jax {path.stem}"] = parser
    return found


def commands_reference() -> str:
    """What each command prints with --help, without the keys of a config."""
    lines = [
        "# Command reference\n",
        "`effnet-jax NAME --help` prints these texts. `python -m effnet_jax` is the same command",
        "without an installation, and `train.py` and `eval.py` are `effnet-jax train` and `eval`.",
        "Commands with `--config` also take [every key](config.md), as `--config.KEY=VALUE`.\n",
    ]
    width, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), "96"
    for name, parser in tools().items():
        parser.prog = name
        text = parser.format_help().partition("config keys with their defaults")[0]
        lines.append(f"## {name.partition(' ')[2]}\n\n```text\n{text.rstrip()}\n```\n")
    os.environ.pop("COLUMNS")
    if width:
        os.environ["COLUMNS"] = width
    return "\n".join(lines)


def public_names() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Each module of PUBLIC with its public names and what they are."""
    for name, chosen in PUBLIC.items():
        module = importlib.import_module(name)
        every = [
            each
            for each, value in vars(module).items()
            if not each.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == name
        ]
        yield name, [(each, getattr(module, each)) for each in chosen or every]


def signature(name: str, value: Any) -> str:
    """How a function is called, as its source has it; the fields of a class with their comments."""
    source = textwrap.dedent(inspect.getsource(value))
    node = ast.parse(source).body[0]
    if isinstance(node, ast.FunctionDef):
        return call(node)
    alone, _ = comments(source)
    lines, shown = source.splitlines(), [f"class {name}({', '.join(map(ast.unparse, node.bases))})"]
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and not field.target.id.startswith("_"):
            first = field.lineno
            while first - 1 in alone:
                first -= 1
            shown += lines[first - 1 : field.end_lineno]
        elif isinstance(field, ast.FunctionDef) and field.name == "__init__":
            shown = ["class " + call(field).replace("__init__", name).partition(" -> ")[0]]
    return "\n".join([shown[0].replace("()", ""), *shown[1:]])


def call(node: ast.FunctionDef) -> str:
    """The first line of a function, a line for each argument where one is too short."""
    text = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    end = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({text}){end}"
    if len(line) <= 88:
        return line
    given, args = [], node.args
    defaults = [None] * (len(args.args) - len(args.defaults)) + args.defaults
    pairs = [*zip(args.args, defaults, strict=True)]
    pairs += [(args.vararg, "*")] if args.vararg else [("*", None)] if args.kwonlyargs else []
    pairs += [*zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    pairs += [(args.kwarg, "**")] if args.kwarg else []
    for each, default in pairs:
        shown = each if each == "*" else ast.unparse(each)
        if isinstance(default, str):
            shown = default + shown
        elif default:
            shown += f" = {ast.unparse(default)}"
        given += [shown] if shown != "self" else []
    return f"{node.name}(\n" + "".join(f"    {each},\n" for each in given) + f"){end}"


def methods(value: type) -> str:
    """A list of the public methods of a class that have a docstring."""
    node = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    lines = []
    for each in node.body:
        shown = isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
        if shown and (said := ast.get_docstring(each)):
            first = said.partition("\n\n")[0].replace("\n", " ")
            lines.append(f"- `{each.name}`: {first}")
    return "\n".join(lines)


def docstring(text: str) -> str:
    """A docstring as markdown: lists of arguments and errors, and examples as code."""
    result, section = [], None
    for block in re.split(r"\n(?=\S)", inspect.cleandoc(text)):
        head, _, body = block.partition("\n")
        section = head.rstrip(":") if head.endswith(":") and body.startswith(" ") else None
        body = textwrap.dedent(body).rstrip()
        if section in ("Returns", "Yields"):
            result.append(f"\n**{section}**\n\n{body}\n")
        elif section and re.match(r"[\w, .*]+: ", body):
            items = re.sub(r"\n\s+", " ", body).splitlines()
            items = [re.sub(r"^([\w, .*]+): ", r"`\1`: ", item) for item in items if item]
            result.append(f"\n**{section}**\n\n" + "\n".join(f"- {item}" for item in items) + "\n")
        elif section:
            result.append(f"{head}\n\n```python\n{body}\n```\n")
        else:
            result.append(block)
    return "\n".join(result).strip()


def api_reference() -> str:
    """The docstrings of the public names."""
    lines = ["# API reference\n", "Made from the docstrings of the package.\n"]
    for module, names in public_names():
        said = importlib.import_module(module).__doc__
        lines.append(f"## {module}\n\n{docstring(said)}\n")
        for name, value in names:
            said = docstring(value.__doc__ or "")
            if said.startswith(f"{name}("):  # What a dataclass without a docstring has.
                said = ""
            heading = f"### {name} {{#{module}.{name}}}"
            if inspect.isclass(value) and (listed := methods(value)):
                said += f"\n\n{listed}"
            lines.append(f"{heading}\n\n```python\n{signature(name, value)}\n```\n\n{said}\n")
    return "\n".join(lines)


def notebook(cells: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """A notebook as markdown, and its pictures by name, as PNG in base64."""
    lines, pictures = [], {}
    for number, cell in enumerate(cells["cells"], 1):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines.append(text)
            continue
        lines.append(f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"tour_{number}.png"
                pictures[name] = "".join(data["image/png"])
                lines.append(f"![output of the cell above]({name})")
            elif said := "".join(output.get("text", data.get("text/plain", ""))):
                lines.append(f"```text\n{said.rstrip()}\n```")
    return "\n\n".join(lines) + "\n", pictures


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages and the notebook's pictures to the files of mkdocs."""
    import base64

    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    if (DOCS / "tour.ipynb").exists():
        for name, data in notebook(json.loads((DOCS / "tour.ipynb").read_text()))[1].items():
            files.append(File.generated(config, name, content=base64.b64decode(data)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of pages in docs/ and of the README to the pages that show files."""
    return markdown if "/" in page.file.src_uri else link_sources(markdown)
