"""The house: arrows between rooms go one way, and no function grows out of hand."""

import ast
import pathlib
import re

import pytest
from conftest import ROOT

PACKAGE = ROOT / "effnet_jax"
# A room imports itself and rooms below; rooms of one line know nothing of each other.
FLOORS = (
    ("errors", "trees"),
    ("scaling", "run"),
    ("models", "data", "metrics", "parallel"),
    ("config", "cli"),
    ("checkpoint",),
    ("evaluation",),
    ("training",),
    ("experiments", "csv_rows"),
    ("flags", "imagenet"),
    ("weights",),
    ("explain", "export"),
    ("sweeps", "report", "planner", "probe"),
    ("tools", "__init__", "__main__"),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(PACKAGE.rglob("*.py"))
LINES = 80  # Of a function.
LEVELS = 3  # Of nested blocks in a function.
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)


def room(path: pathlib.Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: pathlib.Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_a_floor():
    assert {room(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_go_one_way(path):
    own = room(path)
    for name in imports(path):
        first, _, rest = name.partition(".")
        assert first not in ("configs", "tests", "benchmarks"), f"{path} imports {name}"
        other = rest.partition(".")[0]
        if first == "effnet_jax" and other in FLOOR and other != own:
            assert FLOOR[other] < FLOOR[own], f"{own} imports {other}: {path}"


def test_one_file_knows_orbax_and_tools_alone_parse_flags():
    for path in FILES:
        roots = {name.partition(".")[0] for name in imports(path)}
        assert "orbax" not in roots or path.name == "checkpoint.py", path
        if roots & {"argparse", "absl"} - ({"absl"} if room(path) == "data" else set()):
            assert room(path) in ("cli", "flags", "tools", "__main__"), path


def depth(node: ast.AST, level: int = 0) -> int:
    """The deepest nesting of blocks; an `elif` is no deeper than its `if`."""
    deepest = level
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.FunctionDef):
                continue
            chained = field == "orelse" and isinstance(node, ast.If) and isinstance(child, ast.If)
            inside = level + (isinstance(child, BLOCKS) and not chained)
            deepest = max(deepest, depth(child, inside))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_small(path):
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Nonlocal), f"{path}:{node.lineno} nonlocal"
        if isinstance(node, ast.FunctionDef):
            where = f"{path}:{node.lineno} {node.name}"
            length = node.end_lineno - node.lineno + 1
            assert length <= LINES, f"{where} has {length} lines"
            assert depth(node) <= LEVELS, f"{where} nests {depth(node)} levels"


def test_no_text_sends_people_to_an_index_for_a_name_that_is_not_ours():
    """Nobody here owns effnet_jax on PyPI: whoever takes the name would be installed."""
    texts = [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    for path in texts:
        assert not re.search(r"effnet[_-]jax\[|install\W+effnet[_-]jax", path.read_text()), path
