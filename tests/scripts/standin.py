"""Stand-ins for gcloud, kubectl, docker and SLURM's commands, on PATH in tests.

`Standins` makes them. Each notes its call in FOLDER/calls.jsonl, and refuses what the real command
would: another subcommand, an unknown flag, a manifest that is no JobSet. What a start of train.py
comes to is the next word of FOLDER/ends: an exit code; "taken", where a slice is preempted; or
"cancelled", by scancel. SLURM's srun really runs the command where REAL_KILLS is set, and sends
SIGTERM to all tasks in each of the first REAL_KILLS starts, once something was logged.

Flags and answers: the definitions in the Google Cloud CLI 528; JobSet's resource definition and
checks of August 2026; sbatch(1), srun(1) and scontrol(1).
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

FOLDER = pathlib.Path(os.environ.get("STANDINS", "/nowhere"))
COMMANDS = ("gcloud", "kubectl", "docker", "sbatch", "srun", "scontrol")
WORKERS = 2
QUEUED = {
    "create": "--node-id --accelerator-type --runtime-version --spot --guaranteed --reserved",
    "list": "--filter --format",
    "delete": "--force",
}
SBATCH = """--job-name --nodes --gpus-per-node --ntasks-per-node --cpus-per-task --time --requeue
    --open-mode --signal --partition --account --qos"""


class Standins:
    """Stand-ins in `folder`; `ends` are what the starts of train.py come to, 0 after the last."""

    def __init__(self, folder: pathlib.Path, ends: str = "", **environment: str):
        self.folder = folder / "standins"
        (self.folder / "bin").mkdir(parents=True)
        self._write("ends", ends)
        for name in COMMANDS:
            bare = "" if name == "kubectl" else "-S"
            line = f'exec "{sys.executable}" {bare} "{__file__}" {name} "$@"'
            self._write(f"bin/{name}", f"#!/bin/sh\n{line}\n").chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "STANDINS": str(self.folder),
            "POLL_SECONDS": "0",
            **environment,
        }

    def _write(self, name: str, text: str) -> pathlib.Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def run(self, command: list[str] | str, cwd: pathlib.Path) -> subprocess.CompletedProcess:
        """Runs a command, or lines of bash up to the first that fails."""
        if isinstance(command, str):
            command = ["bash", "-euo", "pipefail", "-c", command]
        return subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=600
        )

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def called(self, *words: str) -> list[list[str]]:
        """The calls that have all of these words."""
        return [call for call in self.calls if set(words) <= set(call)]


def refuse(message: str) -> None:
    print(f"stand-in: {message}", file=sys.stderr)
    sys.exit(2)


def note(*call: str) -> None:
    with open(FOLDER / "calls.jsonl", "a") as file:
        file.write(json.dumps(call) + "\n")


def next_end() -> str:
    """What this start of train.py comes to."""
    first, *rest = (FOLDER / "ends").read_text().split() or ["0"]
    (FOLDER / "ends").write_text(" ".join(rest))
    return first


def split(words: list[str], known: str) -> tuple[list[str], dict[str, str]]:
    """Positional words, and flags with their values, all of which have to be known."""
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    if unknown := flags.keys() - set(known.split()):
        refuse(f"unknown flags {sorted(unknown)}")
    return [word for word in words if not word.startswith("--")], flags


def gcloud(words: list[str]) -> int:
    zone = any(word.startswith("--zone=") for word in words)
    if words[:3] != ["--quiet", "compute", "tpus"] or not zone:
        refuse(f"gcloud {words}")
    group, verb, *rest = words[3:]
    if group == "queued-resources" and verb in QUEUED:
        return queued_resource(verb, *split(rest, QUEUED[verb] + " --zone"))
    if (FOLDER / "state").read_text() != "ACTIVE":
        return 1
    names, flags = split(rest, "--worker --command --zone")
    if flags["--worker"] != "all":
        refuse("only on all workers")
    homes = [FOLDER / f"worker_{number}" for number in range(WORKERS)]
    if (group, verb) == ("tpu-vm", "scp"):
        source, target = names
        for home in homes:
            home.mkdir(exist_ok=True)
            shutil.copy(source, home / target.partition(":")[2])
        return 0
    if (group, verb) != ("tpu-vm", "ssh"):
        refuse(f"gcloud {words}")
    end = next_end() if "train.py" in flags["--command"] else "0"
    if end == "taken":
        (FOLDER / "state").write_text("SUSPENDED")
        return 255  # ssh lost the connection.
    return max(worker(home, flags["--command"], end) for home in homes)


def worker(home: pathlib.Path, command: str, code: str) -> int:
    """Runs a command of ours as on a worker, whose Python only notes what it is asked to do."""
    if "effnet_jax" not in command:  # SETUP, which would change this machine.
        return subprocess.run(["bash", "-n", "-c", command]).returncode
    python = home / "bin" / "python3"
    if not python.exists():
        python.parent.mkdir(parents=True)
        python.write_text(
            '#!/bin/bash\nexec "$REAL_PYTHON" -S "$STANDIN_FILE" python3 "$@"\n',
        )
        python.chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "REAL_PYTHON": sys.executable,
        "STANDIN_FILE": __file__,
        "END": code,
    }
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment).returncode


def python3(words: list[str]) -> int:
    """A worker's Python: pip and uv install nothing, and train.py ends as it has to."""
    if words[:3] == ["-m", "uv", "venv"]:
        link = pathlib.Path(words[-1], "bin", "python")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(pathlib.Path.home() / "bin" / "python3")
    if words[0] != "train.py":
        return 0
    if not pathlib.Path("train.py").exists():
        refuse("the code is not there")
    return int(os.environ["END"])


def queued_resource(verb: str, names: list[str], flags: dict[str, str]) -> int:
    path = FOLDER / "state"
    state = path.read_text() if path.exists() else ""
    if verb == "list":
        print(state)
        path.write_text({"WAITING_FOR_RESOURCES": "ACTIVE"}.get(state, state))
    elif verb == "create":
        if state:
            refuse("it exists")
        if missing := {"--node-id", "--accelerator-type", "--runtime-version"} - flags.keys():
            refuse(f"missing {missing}")
        path.write_text("WAITING_FOR_RESOURCES")
    elif not state or "--force" not in flags:
        refuse(f"no resource, or one with nodes and no --force: {names}")
    else:
        path.write_text("")
    return 0


def kubectl(words: list[str]) -> int:
    """Creates a JobSet, and plays its restarts; FOLDER/jobset.json has how it ended."""
    import yaml  # The others start in less time without packages.

    if words == ["create", "--filename=-"]:
        jobset = yaml.safe_load(sys.stdin)
        if wrong := mistakes(jobset):
            refuse(f"no JobSet: {wrong}")
        (FOLDER / "jobset.json").write_text(json.dumps([jobset, play(jobset)]))
        print(f"jobset.jobset.x-k8s.io/{jobset['metadata']['name']} created")
    elif words[0] not in ("get", "logs", "delete"):
        refuse(f"kubectl {words}")
    return 0


# The fields of a manifest of ours, a part of those that there are, with the type of each.
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations?": dict},
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "successPolicy": {"operator": str},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": list}],
        },
        "replicatedJobs": [
            {
                "name": str,
                "replicas": int,
                "template": {
                    "spec": {
                        "completionMode": str,
                        "completions": int,
                        "parallelism": int,
                        "backoffLimit": int,
                        "podFailurePolicy": {
                            "rules": [
                                {
                                    "action": str,
                                    "onExitCodes": {
                                        "containerName": str,
                                        "operator": str,
                                        "values": list,
                                    },
                                }
                            ]
                        },
                        "template": {
                            "spec": {
                                "restartPolicy": str,
                                "terminationGracePeriodSeconds": int,
                                "nodeSelector": dict,
                                "containers": [
                                    {
                                        "name": str,
                                        "image": str,
                                        "args": list,
                                        "resources": {"limits": dict},
                                        "volumeMounts?": [{"name": str, "mountPath": str}],
                                    }
                                ],
                                "volumes?": [
                                    {"name": str, "persistentVolumeClaim": {"claimName": str}}
                                ],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def misfits(value: object, shape: object, where: str = "") -> list[str]:
    """Fields that are missing, unknown or not as in `shape`, where "?" ends optional ones."""
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{where}: {value!r} is no {shape.__name__}"]
    if type(value) is not type(shape):
        return [f"{where}: {value!r}"]
    if isinstance(shape, list):
        return [m for i, each in enumerate(value) for m in misfits(each, shape[0], f"{where}[{i}]")]
    inner = {key.rstrip("?"): kind for key, kind in shape.items()}
    needed = {key for key in shape if not key.endswith("?")}
    wrong = [f"{where}.{key}" for key in (value.keys() - inner.keys()) | (needed - value.keys())]
    for key in value.keys() & inner.keys():
        wrong += misfits(value[key], inner[key], f"{where}.{key}")
    return wrong


def mistakes(jobset: dict) -> list[str]:
    """What the API server would refuse in a manifest of ours."""
    if wrong := misfits(jobset, JOBSET):
        return wrong
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (rule,), pod = spec["podFailurePolicy"]["rules"], spec["template"]["spec"]
    codes, (container,) = rule["onExitCodes"], pod["containers"]
    (policy,) = jobset["spec"]["failurePolicy"]["rules"]
    name = f"{jobset['metadata']['name']}-{job['name']}-0-{spec['completions']}"
    facts = {
        "version": jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2",
        "kind": jobset["kind"] == "JobSet",
        "success": jobset["spec"]["successPolicy"]["operator"] in ("All", "Any"),
        "action": policy["action"] in ("FailJobSet", "RestartJobSet"),
        "rule's name": re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", policy["name"]),
        "reasons": policy["onJobFailureReasons"] == ["PodFailurePolicy"],
        "indexed": spec["completionMode"] == "Indexed",
        "all at once": spec["completions"] == spec["parallelism"] > 0,
        # Kubernetes takes a podFailurePolicy only with this restart policy.
        "restartPolicy": pod["restartPolicy"] == "Never",
        "rule": rule["action"] in ("FailJob", "Ignore", "Count"),
        "container": codes["containerName"] == container["name"],
        "operator": codes["operator"] in ("In", "NotIn"),
        "codes": 0 not in codes["values"] and codes["values"] == sorted(set(codes["values"])),
        "args": all(type(word) is str for word in container["args"]),
        "limits": all(type(count) is int for count in container["resources"]["limits"].values()),
        "a pod's name": re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name),
        "volumes": [each["name"] for each in pod.get("volumes", [])]
        == [each["name"] for each in container.get("volumeMounts", [])],
    }
    return [fact for fact, true in facts.items() if not true]


def play(jobset: dict) -> dict:
    """How a JobSet ends whose first pod ends as FOLDER/ends says, and how often it is started."""
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    codes = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    for restarts in range(jobset["spec"]["failurePolicy"]["maxRestarts"] + 1):
        code = int(next_end())
        if code == 0:
            return {"state": "Completed", "restarts": restarts}
        if (code in codes["values"]) == (codes["operator"] == "In"):
            break  # The job fails by PodFailurePolicy, for which the JobSet's rule is to fail.
    return {"state": "Failed", "restarts": restarts}


def docker(words: list[str]) -> int:
    if words[0] == "build":
        flags = split(words[1:], "--build-arg --tag")[1]
        if words[-1] != "." or not flags["--build-arg"].startswith("JAX="):
            refuse(f"docker {words}")
    elif words[0] != "push":
        refuse(f"docker {words}")
    return 0


def sbatch(words: list[str]) -> int:
    """Runs the job to its end, in the way of SLURM: a copy of the script, again when requeued."""
    place = next(i for i, word in enumerate(words) if not word.startswith("--"))
    script, *arguments = words[place:]
    lines = pathlib.Path(script).read_text().splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    split(directives + words[:place], SBATCH)
    copy = FOLDER / "slurm_script"
    shutil.copy(script, copy)
    with socket.socket() as listener:  # JAX's port follows from the job's number.
        listener.bind(("127.0.0.1", 0))
        job = str(2**12 + listener.getsockname()[1] % 2**12)
    print(f"Submitted batch job {job}")
    for restarts in range(100):
        count = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        (FOLDER / "requeued").unlink(missing_ok=True)
        with open(FOLDER / "slurm.out", "a") as output:
            result = subprocess.run(
                ["bash", copy, *arguments],
                env={**os.environ, "SLURM_JOB_ID": job, "SLURM_NTASKS": "16", **count},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if not (FOLDER / "requeued").exists():
            break
    (FOLDER / "slurm_code").write_text(str(result.returncode))
    return 0


def scontrol(words: list[str]) -> int:
    job = os.environ["SLURM_JOB_ID"]
    if words == ["requeue", job]:
        (FOLDER / "requeued").touch()
    elif words == ["--json", "show", "job", job]:
        state = "CANCELLED" if (FOLDER / "cancelled").exists() else "RUNNING"
        answer = {"job_id": int(job), "job_state": [state, "COMPLETING"]}
        print(json.dumps({"jobs": [answer]}, indent=2))
    else:
        refuse(f"scontrol {words}")
    return 0


def srun(words: list[str]) -> int:
    place = next(i for i, word in enumerate(words) if not word.startswith("--"))
    split(words[:place], "--gpu-bind --kill-on-bad-exit")
    if "REAL_KILLS" in os.environ:
        return really_run(words[place:])
    end = next_end()
    if end == "cancelled":
        (FOLDER / "cancelled").touch()
    return 75 if end == "cancelled" else int(end)


def really_run(command: list[str]) -> int:
    """Runs REAL_TASKS tasks of a command; returns the highest exit code, as srun does."""
    count = int(os.environ.get("REAL_TASKS", 1))
    tasks = []
    for number in range(count):
        place = {"PROCID": number, "LOCALID": number, "NTASKS": count, "STEP_NUM_TASKS": count}
        place |= {"STEP_NODELIST": "127.0.0.1", "STEP_NUM_NODES": 1}
        place = {f"SLURM_{key}": str(value) for key, value in place.items()}
        tasks.append(subprocess.Popen(command, env={**os.environ, **place}))
    workdir = next(word for word in command if word.startswith("--workdir=")).partition("=")[2]
    metrics = pathlib.Path(workdir, "metrics.jsonl")
    kill = int(os.environ.get("SLURM_RESTART_COUNT", 0)) < int(os.environ["REAL_KILLS"])
    before = metrics.stat().st_size if metrics.exists() else 0
    while kill and all(task.poll() is None for task in tasks):
        if metrics.exists() and metrics.stat().st_size > before:
            for task in tasks:
                task.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    _, name, *words = sys.argv
    note(name, *words)
    sys.exit(globals()[name](words))
