"""The code, package versions and machine of a process."""

import datetime
import hashlib
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def git_commit() -> str | None:
    """The git commit of this code, with "-dirty" if files have changed; None outside git."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def start_facts(config: ConfigDict, data: dict[str, str]) -> dict[str, Any]:
    """Facts that must be equal on all processes: code, versions, config, fingerprints of data."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {
        "code": f"files {digest.hexdigest()[:16]}",
        **{name: metadata.version(name) for name in PACKAGES},
        **flatten_dict({"config": config.to_dict()}, sep="."),
        **{f"data {name}": text for name, text in data.items()},
    }


def describe_run() -> dict[str, Any]:
    """Facts about a run for its log: time, commit, versions, devices and machine."""
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
    }
