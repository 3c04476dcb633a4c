"""The launchers and their pages, line by line, against stand-ins of the commands that they call.

`make launch` also stops a run of two processes under SLURM's stand-in three times.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from standin import Standins, mistakes

from effnet_jax import cli
from effnet_jax.run import writers
from effnet_jax.tools.train import PARSER

SCRIPTS = sorted((ROOT / "scripts").iterdir())
TPU = {"NAME": "b0", "ZONE": "us-west4-a", "TYPE": "v5litepod-16"}
GKE = {"NAME": "b0", "IMAGE": "r/e:gpu", "ACCELERATOR": "nvidia-h100-80gb", "NODES": "2"}
UNCHECKED = {"PYTHON": "/no/python"}  # Checking flags takes seconds.
FLAGS = ["--config=configs/digits.py", "--workdir=/shared/a run"]
MODEL = "resnet18,w=0.1,d=0.1,r=16"  # Compiles in little time.
# What a run comes to by its exit code: 141 nobody reads, 137 SIGKILL, 134 JAX's own end.
ENDS = {0: "done", 1: "failed", 2: "failed", 3: "failed", 130: "failed"}
ENDS |= dict.fromkeys((75, 134, 137, 141), "again")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> pathlib.Path:
    """The checkout as a git repository of its own, as `git archive` needs one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("scripts", "train.py", "requirements.txt"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def launch(kind: str, standins: Standins, cwd: pathlib.Path, *flags: str) -> str:
    """Starts a run by one of the launchers; returns all output."""
    command = {"tpu": ["scripts/tpu.sh"], "gke": ["scripts/gke.sh"]}
    slurm = ["sbatch", "--nodes=2", "scripts/slurm.sbatch"]
    result = standins.run([*command.get(kind, slurm), *(flags or FLAGS)], cwd)
    return f"{result.stdout}{result.stderr}\nexit code {result.returncode}"


def test_shellcheck_has_nothing_to_say():
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    result = subprocess.run([shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("code", ENDS)
def test_the_launchers_agree_on_what_starts_again(tmp_path, checkout, code):
    again = ENDS[code] == "again"
    starts, last = (2, 0) if again else (1, code)
    slurm = Standins(tmp_path / "slurm", f"{code} 0", **UNCHECKED)
    launch("slurm", slurm, checkout)
    assert int((slurm.folder / "slurm_code").read_text()) == last
    assert len(slurm.called("srun")) == starts
    assert len(slurm.called("scontrol", "requeue")) == starts - 1
    gke = Standins(tmp_path / "gke", f"{code} 0", **GKE, **UNCHECKED)
    launch("gke", gke, checkout)
    state = "Failed" if ENDS[code] == "failed" else "Completed"
    assert json.loads((gke.folder / "jobset.json").read_text())[1] == {
        "state": state,
        "restarts": starts - 1,
    }
    if code not in (0, 2, 134):  # All share one function in scripts/launch.sh with SLURM.
        return
    tpu = Standins(tmp_path / "tpu", f"{code} 0", **TPU, **UNCHECKED)
    assert f"exit code {last}" in launch("tpu", tpu, checkout).splitlines()[-1]
    assert len(tpu.called("python3", "train.py")) == 2 * starts  # Two workers.
    assert (tpu.folder / "state").read_text() == ""  # Deleted.


def test_a_slice_that_is_taken_is_deleted_and_requested_again(tmp_path, checkout):
    more = {"CREATE": "--spot", "PACKAGES": "gcsfs>=2026.8 wandb"}
    standins = Standins(tmp_path, "taken 75 0", **more, **TPU, **UNCHECKED)
    output = launch("tpu", standins, checkout)
    assert "exit code 0" in output.splitlines()[-1], output
    verbs = [call[5] for call in standins.called("gcloud") if call[5] != "list"]
    start = ["ssh", "scp", "ssh", "ssh"]  # SETUP, the code, its installation, train.py.
    assert verbs == ["create", *start, "delete", "create", *start, *start, "delete"]
    assert all("--spot" in call for call in standins.called("create"))
    # Every worker got the flags as they were given, and the code.
    trained = standins.called("python3", "train.py")
    assert trained == [["python3", "train.py", *FLAGS]] * 4
    assert standins.called("python3", "jax[tpu]", "gcsfs>=2026.8", "wandb")
    assert (standins.folder / "worker_1" / "effnet_jax" / "requirements.txt").exists()


def test_restarts_end(tmp_path, checkout):
    for kind, variables in (("tpu", TPU), ("gke", GKE), ("slurm", {})):
        more = {"MOST_RESTARTS": "1", **variables, **UNCHECKED}
        standins = Standins(tmp_path / kind, "75 75 0", **more)
        launch(kind, standins, checkout)
        assert (standins.folder / "ends").read_text() == "0", kind


def test_a_job_that_was_cancelled_is_not_queued_again(tmp_path, checkout):
    standins = Standins(tmp_path, "cancelled 0", **UNCHECKED)
    launch("slurm", standins, checkout)
    assert "the job was cancelled" in (standins.folder / "slurm.out").read_text()
    assert len(standins.called("srun")) == 1


def test_a_slice_is_kept_on_demand_and_where_it_cannot_be_made(tmp_path, checkout):
    standins = Standins(tmp_path / "kept", "3", KEEP="1", **TPU, **UNCHECKED)
    output = launch("tpu", standins, checkout)
    assert "gcloud compute tpus queued-resources delete b0 --zone=us-west4-a --force" in output
    assert "exit code 3" in output.splitlines()[-1]
    assert not standins.called("delete")
    refused = Standins(tmp_path / "refused", CREATE="--no-such-flag", **TPU, **UNCHECKED)
    assert "exit code 2" in launch("tpu", refused, checkout).splitlines()[-1]
    assert len(refused.called("create")) == 1


@pytest.mark.parametrize(
    "kind, changes, flags, message",
    [
        ("tpu", {"ZONE": ""}, FLAGS, "ZONE is not set; give ZONE=VALUE, the zone of the slice"),
        ("tpu", {}, ["--config=digits"], "give --workdir=DIR, on storage that all machines share"),
        ("gke", {"NAME": "B_0"}, FLAGS, "NAME=B_0: use at most 40 lower-case letters"),
        ("gke", {"NODES": ""}, FLAGS, "NODES is not set"),
        ("gke", {"TOPOLOGY": "4by4"}, FLAGS, "TOPOLOGY=4by4 is not like 4x4 or 2x2x4"),
        ("gke", {"TOPOLOGY": "3x3"}, FLAGS, "9 chips, which CHIPS=4 does not divide"),
        ("gke", {}, [*FLAGS, "--config.x=a\nb"], "a line break or control character"),
    ],
)
def test_a_mistake_is_named_before_anything_is_called(tmp_path, kind, changes, flags, message):
    variables = {**(TPU if kind == "tpu" else GKE), **changes, **UNCHECKED}
    standins = Standins(tmp_path, **variables)
    output = launch(kind, standins, ROOT, *flags)
    assert message in output
    assert "exit code 2" in output.splitlines()[-1]
    assert not standins.calls


@pytest.mark.parametrize("kind", ["tpu", "gke", "slurm"])
def test_a_dry_run_checks_the_flags_and_calls_nothing(tmp_path, kind):
    variables = {"tpu": TPU, "gke": GKE, "slurm": {}}[kind]
    standins = Standins(tmp_path, PYTHON=sys.executable, **variables)
    script = "scripts/slurm.sbatch" if kind == "slurm" else f"scripts/{kind}.sh"
    wrong = standins.run([script, "--dry_run", *FLAGS, "--config.batch_sise=8"], ROOT)
    assert wrong.returncode == 2
    assert "batch_sise" in wrong.stderr
    assert not wrong.stdout
    right = standins.run([script, "--dry_run", *FLAGS], ROOT)
    assert right.returncode == 0, right.stderr
    assert "would run: " in right.stdout
    assert not standins.calls


def test_pods_get_the_words_as_they_were_given(tmp_path):
    flags = ["--config=digits", "--workdir=/shared/$(HOME) $x \\ \"a'b", "--config.seed=3"]
    standins = Standins(tmp_path, **GKE, **UNCHECKED)
    launch("gke", standins, ROOT, *flags)
    jobset, _ = json.loads((standins.folder / "jobset.json").read_text())
    words = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    *mine, coordinator, count, index = words["containers"][0]["args"]
    # Kubernetes reads $$ as $, and $(NAME) as a variable.
    assert [word.replace("$$", "$") for word in mine] == flags
    assert "$(" not in "".join(mine).replace("$$", "")
    assert coordinator == "--coordinator_address=b0-train-0-0.b0:55527"
    assert (count, index) == ("--num_processes=2", "--process_id=$(JOB_COMPLETION_INDEX)")


@pytest.mark.parametrize(
    "changes, pods, limits",
    [
        ({"TOPOLOGY": "4x4", "CLAIM": "shared"}, 4, {"google.com/tpu": 4}),
        ({"TOPOLOGY": "2x2x4"}, 4, {"google.com/tpu": 4}),
        ({"NODES": "1", "CHIPS": "1"}, 1, {"nvidia.com/gpu": 1}),
    ],
)
def test_the_manifest_has_a_pod_for_each_machine(tmp_path, changes, pods, limits):
    standins = Standins(tmp_path, **{**GKE, **changes}, **UNCHECKED)
    result = standins.run(["scripts/gke.sh", "--dry_run", *FLAGS], ROOT)
    jobset = yaml.safe_load(result.stdout)
    assert not mistakes(jobset)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert (job["completions"], container["resources"]["limits"]) == (pods, limits)
    assert not any("process" in word for word in container["args"])  # Alone, or told by GKE.
    # The stand-in would see what is wrong.
    del job["completionMode"]
    assert mistakes(jobset)


PAGES = {
    # How each start of train.py ends, and the commands that the page's lines come to.
    "tpu": ("taken 75 0", {"create": 2, "delete": 2, "scp": 3}),
    "gke": ("75 0 134 0", {"docker": 2, "create": 2, "get": 1, "logs": 1, "delete": 1}),
    "slurm": ("75 0", {"sbatch": 1, "srun": 2, "requeue": 1}),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_works_line_by_line(tmp_path, checkout, page):
    """All commands of a page in one shell, which stops at the first that fails."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ends, expected = PAGES[page]
    standins = Standins(tmp_path, ends, **UNCHECKED)
    result = standins.run("\n".join(blocks), checkout)
    assert result.returncode == 0, result.stderr
    assert not (standins.folder / "ends").read_text()
    for word, count in expected.items():
        assert len(standins.called(word)) == count, word
    # Whoever has the checkout can read the flags, and every variable of the page is one.
    (flags,) = set(re.findall(r"(--config=configs/imagenet.*?/shared/runs/\w+)", text, re.DOTALL))
    assert PARSER.parse_args(flags.replace("\\\n", " ").split()).config.batch_size == 4096
    source = (ROOT / "scripts" / ("slurm.sbatch" if page == "slurm" else f"{page}.sh")).read_text()
    source += (ROOT / "scripts" / "launch.sh").read_text()
    for row in re.findall(r"^\| (`[A-Z].*?) \|", text, re.MULTILINE):
        for name in re.findall(r"`([A-Z_]+)`", row):
            assert re.search(rf"\b{name}\b", source), name


def test_the_image_has_what_the_commands_need():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    names = [name for name, _ in steps]
    assert set(names) <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENTRYPOINT"}
    assert names[0] == "FROM"
    arguments = dict(reversed(step) if step[0] == "COPY" else step for step in steps)
    assert json.loads(arguments["ENTRYPOINT"]) == ["tini", "--", "python", "train.py"]
    install = next(text for name, text in steps if name == "RUN" and "pip install" in text)
    assert '-r requirements.txt "jax[$JAX]"' in install
    # In the image is what .dockerignore lets through.
    first, *allowed = (ROOT / ".dockerignore").read_text().split()
    assert first == "*"
    kept = [name.removeprefix("!") for name in allowed if name.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    assert {"effnet_jax", "configs", "train.py", "requirements.txt"} <= set(kept)


@pytest.mark.parametrize("tasks", [1] if "LAUNCH_KILLS" not in os.environ else [1, 2])
def test_under_slurm_a_run_is_stopped_queued_again_and_resumes(tmp_path, tasks):
    kills = int(os.environ.get("LAUNCH_KILLS", 1))
    workdir = tmp_path / "run"
    flags = [
        f"--config=configs/digits.py:{MODEL}",
        f"--workdir={workdir}",
        "--config.batch_size=64",
        "--config.epochs=3.0",
        "--config.log_steps=1",
        "--config.eval_epochs=3.0",
    ]
    xla = re.sub(r"(device_count=)\d+", r"\g<1>1", os.environ["XLA_FLAGS"])
    more = {"REAL_KILLS": str(kills), "REAL_TASKS": str(tasks), "XLA_FLAGS": xla}
    standins = Standins(tmp_path, PYTHON=sys.executable, **more)
    launch("slurm", standins, ROOT, *flags)
    output = (standins.folder / "slurm.out").read_text()
    assert (standins.folder / "slurm_code").read_text() == "0", output
    assert len(standins.called("srun")) == kills + 1
    assert output.count(f"exit code {cli.INTERRUPTED}: queueing job") == kills
    assert len(re.findall(r"stopped by SIGTERM.* after step", output)) >= kills
    # Every step once, and the last.
    steps = [row["step"] for row in writers.read_metrics(workdir) if "train_loss" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert f"of {len(steps)}" in output
