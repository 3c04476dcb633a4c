"""The pages: links lead somewhere, commands parse, blocks run, and the reference is complete."""

import ast
import contextlib
import csv
import html
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import GOLDEN, ROOT
from PIL import Image
from pyarrow import parquet

from effnet_jax import config as config_lib
from effnet_jax import experiments, export, models, scaling, weights
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.sweeps import runs

sys.path.insert(0, str(ROOT / "docs"))
import generate

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
# Blocks that other tests run.
ELSEWHERE = {
    ("docs/tpu.md", "bash"): "scripts/test_launchers.py",
    ("docs/gke.md", "bash"): "scripts/test_launchers.py",
    ("docs/slurm.md", "bash"): "scripts/test_launchers.py",
    ("docs/backbone.md", "bash"): "models/test_backbone.py",
    ("docs/backbone.md", "python"): "models/test_backbone.py",
    ("docs/fine_tuning.md", "python"): "weights/test_initial.py",
    ("docs/getting_started.md", "bash"): "test_docs.py",
    ("docs/getting_started.md", "python"): "test_docs.py",
}
# Why a block is not run, where a worked diff has to be applied before it.
PATCHED = "needs the diff above"
# What is made small before a block runs: its weights are those of a network of 16 px, 10 classes.
SMALL = {"224": "16", "[281, 207]": "[1, 2]", '"phi=1.5"': '"resnet18,w=0.1,d=0.1,r=32"'}
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# A command of ours, with its flags, in a line of text.
INLINE = re.compile(r"`((?:effnet-jax [a-z]\w+|python (?:train|eval)\.py) [^`]*[-/=][^`]*)`")
# Programs that are not ours: their arguments are not checked.
FOREIGN = set("cd docker export git kill kubectl mkdir pip sbatch scancel tfds unset".split())  # noqa: SIM905


def blocks(path, kinds=("bash", "python")):
    """The fenced blocks of a page: (reason why it is not run or None, kind, text)."""
    found = FENCE.finditer(path.read_text())
    return [match.group("reason", "kind", "text") for match in found if match["kind"] in kinds]


def anchors(path):
    """The anchors of a page's headings that GitHub and the site make alike."""
    text = FENCE.sub("", path.read_text())
    heads = [
        re.sub(r"\]\([^)]*\)|[`\[]", "", head) for head in re.findall(r"^#+ (.+)$", text, re.M)
    ]
    kept = [re.sub(r"[^\w\s-]", "", head).strip().lower() for head in heads]
    return {re.sub(r"\s", "-", head) for head in kept if not re.search(r"[\s-]{2}", head)}


def test_every_link_leads_somewhere():
    for path in PAGES:
        text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", path.read_text()))
        for target in re.findall(r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\"", text):
            target = html.unescape("".join(target))
            if re.match(r"https?:|mailto:", target):
                continue
            name, _, anchor = target.partition("#")
            other = (path.parent / name).resolve() if name else path
            assert other.exists() and other.is_relative_to(ROOT), f"{path.name}: {target}"
            if anchor:
                assert anchor in anchors(other), f"{path.name}: {target}"


def test_the_site_has_every_page_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    names = re.findall(r"[\w/]+\.md", str(nav))
    made = [name for name in generate.pages() if not name.startswith("source/")]
    assert sorted(names) == sorted([*(path.name for path in PAGES[1:]), *made])


def test_the_readme_is_short_and_names_every_page():
    text = PAGES[0].read_text()
    assert len(text.splitlines()) <= 250
    assert not [path.name for path in PAGES[1:] if f"(docs/{path.name}" not in text]


def test_the_reference_explains_every_key_and_public_name():
    keys = generate.config_reference()
    schema = dict(config_lib._limits(config_lib.SCHEMA))
    assert len(schema) > 80 and all(f'<a id="{key}"></a>' in keys for key in schema)
    for row in keys.splitlines():
        if row.startswith("| <a"):
            key, default, takes, meaning = row.strip("| ").split(" | ", 3)
            assert len(meaning) > 8 and default and takes, key
            # A comment that runs on into the next one reads as nonsense here.
            assert meaning.rstrip().endswith((".", ":", ")")) and not meaning.endswith(","), row
    assert '<a id="optimizer.rmsprop.epsilon"></a>`optimizer.rmsprop.epsilon` | ' in keys
    assert "<code>0.001</code> | 0 or more | Added inside the square root. |" in keys
    text = generate.api_reference()
    for module, names in generate.public_names():
        assert names and f"\n## {module}\n" in text
        for name, value in names:
            assert value.__doc__, f"{module}.{name}"
            assert f"### {name} {{#{module}.{name}}}" in text
    assert (
        "- `strides`: the feature maps to return" in text and "hooks: Sequence[Hook] = ()" in text
    )


def commands(text):
    """The commands of a bash block as lists of words, with its own variables filled in."""
    text = re.sub(r"(?m)(^|\s+)# .*$", "", text.replace("\\\n", " "))
    text = re.sub(r"<[\w ]+>|\b(RATE|DECAY)\b", "1", text)
    for name, value in re.findall(r'(?m)^(\w+)="([^"\n]*)"$', text):
        text = re.sub(rf"\${name}\b", value, text)
    words = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    words.whitespace, words.whitespace_split, words.commenters = " \t", True, ""
    command = []
    for word in [*words, "\n"]:
        if not re.fullmatch(r"[();<>|&\n]+", word):
            command.append(word)
            continue
        while command and (command[0] in ("do", "done") or re.match(r"\w+=", command[0])):
            del command[0]
        if command:
            yield command
        command = []


def parser_of(command):
    """The parser of one of our commands and its arguments; None for a foreign program."""
    program, *rest = command
    program = program.removeprefix(".venv/bin/").removeprefix(".venv-plan/bin/")
    scripts = [n for n, word in enumerate(command) if word.startswith("scripts/")]
    if scripts and command[scripts[0]].endswith((".sh", ".sbatch")):
        assert (ROOT / command[scripts[0]]).is_file(), command
        rest = [word for word in command[scripts[0] + 1 :] if word != "--dry_run"]
        return importlib.import_module("effnet_jax.tools.train").PARSER, rest
    if program in ("python", "python3") and rest[0] in ("train.py", "eval.py"):
        program, rest = "effnet-jax", [rest[0].removesuffix(".py"), *rest[1:]]
    if program in ("python", "python3") and rest[:2] == ["-m", "effnet_jax"]:
        program, rest = "effnet-jax", rest[2:]
    if program == "effnet-jax":
        return importlib.import_module(f"effnet_jax.tools.{rest[0]}").PARSER, rest[1:]
    if program in ("python", "python3") and rest[:2] == ["-m", "benchmarks"]:
        from benchmarks.__main__ import BENCHMARKS

        return BENCHMARKS[rest[2]].PARSER, rest[3:]
    if program == "make":
        rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= rules, command
    elif program in ("python", "python3") and rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in rest[2:] if "/" in word), command
    elif program in ("python", "python3") and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file(), command
    else:
        known = program in FOREIGN or rest[:1] in (["-m"], ["-c"]) or program in ("for", ".")
        assert known or program == "jobset", f"unknown program: {command}"
    return None


def check_arguments(parser, arguments):
    """Parses a command's flags, and checks the config, sweep and data set that they name."""
    args = parser.parse_args([word for word in arguments if word != "..."])
    if parser.config:
        config_lib.validate(args.config)
    data = getattr(args, "data", None)
    if data and not data.endswith(".py") and "results" not in args:
        experiments.get_config("evaluation", "data set", data)
    if sweep := getattr(args, "sweep", None):
        if "=" in sweep.partition(":")[0]:
            runs.apply(args.config, next(runs.product(sweep)))
        else:
            experiments.find("sweeps", "sweep", sweep.partition(":")[0], "get_sweep")


@pytest.fixture
def in_runs(tmp_path, monkeypatch):
    """Configs in runs/ are those of digits: pages name runs that nobody has."""
    config_lib.save(experiments.read("digits"), tmp_path / "config.json")
    read = experiments.read

    def stand_in(name):
        made = name.startswith("runs/")
        return read(f"{tmp_path}/config.json{''.join(name.partition(':')[1:])}" if made else name)

    monkeypatch.setattr(experiments, "read", stand_in)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_command_has_the_flags_and_keys_that_the_page_gives_it(path, in_runs):
    texts = [text for why, _, text in blocks(path, ("bash",)) if PATCHED not in (why or "")]
    if path == PAGES[0]:  # The README's tables have whole commands.
        texts += INLINE.findall(FENCE.sub("", path.read_text()))
    for text in texts:
        for command in commands(text):
            try:
                found = parser_of(command)
                if found:
                    check_arguments(*found)
            except Exception as error:
                raise AssertionError(f"{' '.join(command)}\n{error}") from error


def test_a_wrong_flag_or_key_is_found(in_runs):
    for line in (
        "python train.py --config.optimiser.name=sgd",
        "effnet-jax predict cat.jpg --weight=b0.npz",
        "effnet-jax sweep --sweep=seed:3 --workdir=a",
        "python eval.py --workdir=a --data=imagenet_b",
        "make tests",
        "effnett train",
    ):
        with pytest.raises((Exception, AssertionError)):
            for command in commands(line):
                found = parser_of(command)
                check_arguments(*found)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what pages take for granted: weights, images, the config of a run."""
    monkeypatch.chdir(tmp_path)
    weights.save("lite0.safetensors", weights.load(str(GOLDEN / "checkpoint_v1")))
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "dog.jpg", "photos/bird.png"):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(name)
    return tmp_path


def namespace(path):
    """The names that a page's Python uses and does not define."""
    images = np.zeros((2, 16, 16, 3), np.float32)
    return {"__name__": "page", "images": images, "pixels": images.astype(np.uint8)}


def run_here(kind):
    """The pages with blocks of a kind that this file runs."""
    pages = [(name, path) for name, path in zip(NAMES, PAGES, strict=True)]
    found = [n for n, path in pages if any(not reason for reason, *_ in blocks(path, (kind,)))]
    return [name for name in found if (name, kind) not in ELSEWHERE]


@pytest.mark.parametrize("name", run_here("python"))
def test_the_python_of_a_page_runs(name, folder, tiny, one_device):
    tiny.epochs, tiny.checkpoint.save_epochs = 0.5, 1.0
    tiny.evaluations.val.weights = ("ema",)
    for run in ("digits", "phi-3"):
        (folder / "runs" / run).mkdir(parents=True)
        config_lib.save(tiny, folder / "runs" / run / "config.json")
    if name == "docs/export.md":
        export.write("lite0.stablehlo", weights.load("lite0.safetensors"))
    if name == "docs/data.md":
        (folder / "DIR").mkdir()
        (folder / "NEW").mkdir()
        parquet.write_table(pa.table({"label": [0, 1]}), "DIR/train-00000-of-00001.parquet")
    images = np.zeros((2, 16, 16, 3), np.float32)
    names = {"images": images, "pixels": images.astype(np.uint8), "config": config_lib.get_config()}
    with contextlib.redirect_stdout(sys.stderr):
        for reason, _, text in blocks(ROOT / name, ("python",)):
            for large, small in SMALL.items():
                text = text.replace(large, small)
            if not reason:
                exec(compile(text, name, "exec"), names)


@pytest.mark.parametrize("name", run_here("bash"))
def test_the_commands_of_a_page_run(name, folder):
    for reason, _, text in blocks(ROOT / name, ("bash",)):
        for command in [] if reason else commands(text):
            module = importlib.import_module(f"effnet_jax.tools.{command[1]}")
            module.main(module.PARSER.parse_args(command[2:]))


def test_getting_started_runs_in_order(folder):
    shutil.copytree(GOLDEN / "checkpoint_v1", "runs/digits")  # A run on digits.
    for reason, kind, text in blocks(ROOT / "docs/getting_started.md"):
        if kind == "python":
            exec(compile(text, "getting_started", "exec"), {})
        for command in commands(text) if kind == "bash" and not reason else []:
            module = importlib.import_module(f"effnet_jax.tools.{command[1]}")
            module.main(module.PARSER.parse_args(command[2:]))


def test_the_worked_diffs_apply_and_work(tmp_path):
    for name in ("effnet_jax", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    page, lines = ROOT / "docs/contributing.md", []
    diffs = [text for _, _, text in blocks(page, ("diff",))]
    assert len(diffs) == 4
    for text in diffs:  # With other context, as where a comment next to it has changed.
        command = ["git", "apply", "-C0", "-"]
        done = subprocess.run(command, cwd=tmp_path, input=text, text=True, capture_output=True)
        assert done.returncode == 0, f"{done.stderr}\n{text}"
    for reason, _, text in blocks(page, ("bash",)):
        lines += commands(text) if PATCHED in (reason or "") else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    script = [sys.executable, ROOT / "tests/worked_diffs.py", json.dumps(lines)]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_tests_and_functions_that_pages_name_exist():
    def names(path):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            yield getattr(node, "name", None)
            for inner in getattr(node, "body", ()) if isinstance(node, ast.ClassDef) else ():
                yield f"{node.name}.{getattr(inner, 'name', None)}"
        assigned = [node.targets for node in tree.body if isinstance(node, ast.Assign)]
        yield from (target.id for [target] in assigned if isinstance(target, ast.Name))

    counts = []
    for page, sign, root in (("reliability", "::", ROOT), ("layout", ":", ROOT / "effnet_jax")):
        text = (ROOT / f"docs/{page}.md").read_text()
        found = re.findall(rf"`([\w/]+\.py){sign}([\w.]+)`", text)
        for name, wanted in found:
            assert wanted in set(names(root / name)), f"{page}.md: {name}{sign}{wanted}"
        counts.append(len(found))
    assert min(counts) > 30


def tables(name, columns):
    """The rows of a page's tables that have so many columns, without backticks."""
    lines = (ROOT / name).read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ")]
    rows = [[cell.strip(" `") for cell in row] for row in rows]
    return [row for row in rows if len(row) == columns]


def test_the_models_and_weights_of_the_tables_are_those_counted_and_published():
    rows = {row[0]: row for row in tables("README.md", 7) if row[0] in VARIANTS}
    assert set(rows) == set(VARIANTS)
    with open(ROOT / "effnet_jax/report/paper/released.csv", newline="") as file:
        released = [row for row in csv.DictReader(file) if row["set"] == "imagenet"]
    published = {row["top1"] for row in released}
    for name, (_, parameters, multiply_adds, pixels, top1, *_) in rows.items():
        model = config_lib.get_config(name).model
        model.num_classes = 1000
        architecture = models.architecture(model)
        cost = scaling.cost(architecture.layers())
        assert parameters == f"{cost.parameters / 1e6:.1f}", name
        assert multiply_adds == f"{cost.multiply_adds / 1e9:.2f}", name
        assert int(pixels) == architecture.resolution and top1.split()[0] in published, name
    page = re.sub(r"[`|;,]", " ", (ROOT / "docs/weights.md").read_text())
    for row in released:
        model, _, tag = row["name"].partition(".")
        if row["source"].startswith("timm"):
            shown = rf"\b{model}\b.* {tag} (\s*\S+ \(\d+\)\s*)*"
            shown += rf"\s*{float(row['top1']):.1f} \({row['resolution']}\)"
            assert re.search(shown, page), row
        else:
            assert row["top1"] in page, row


def test_every_block_is_run_or_says_why_not():
    for name, path in zip(NAMES, PAGES, strict=True):
        for reason, _, text in blocks(path):
            assert reason is None or re.match(r"needs |takes |as ", reason), f"{name}\n{text}"
    for test in ELSEWHERE.values():
        assert (ROOT / "tests" / test).is_file()
