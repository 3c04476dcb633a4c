"""Metric writers that send to a server: Weights & Biases and MLflow, each an optional package.

Server, project and key are set as usual for these packages, by their environment variables and
files.
"""

import importlib.util
import logging
import os
import pathlib
import queue
import threading
import time
import uuid
from collections.abc import Collection
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.run import files
from effnet_jax.run.writers import Writer, say

PROJECT = "effnet_jax"  # W&B's project and MLflow's experiment, unless their variables name one.
CLOSE_SECONDS = 60.0  # How long a run waits at its end for metrics to be sent.


class WandB(Writer):
    """W&B. A run that resumes continues its W&B run, where a step keeps its first row."""

    package, extra = "wandb", "wandb>=0.31"

    @staticmethod
    def check() -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        if mode in ("online", "shared", "run") and not wandb.login(prompt=False, verify=False):
            raise UserError(
                "config.writers has 'wandb', but no key is set: run `wandb login`, set "
                "WANDB_API_KEY, or set WANDB_MODE=offline"
            )

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any]):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=workdir,
            id=_own_id(workdir, "wandb"),
            name=workdir.resolve().name,
            config=config,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def scalars(self, step: int, row: dict[str, float]) -> None:
        self._run.log(row, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(Writer):
    """MLflow. A run that resumes continues its MLflow run."""

    package, extra = "mlflow", "mlflow-skinny>=3"

    @staticmethod
    def check() -> None:
        from mlflow.tracking import MlflowClient

        try:
            MlflowClient().search_experiments(max_results=1)
        except Exception as error:  # A store that lacks a package raises an error of its own.
            text = str(error).partition("\n")[0]
            raise UserError(
                f"config.writers has 'mlflow', which can't be used: {text}. Check "
                "MLFLOW_TRACKING_URI, and that the server runs"
            ) from None

    def __init__(self, workdir: pathlib.Path, config: dict[str, Any]):
        from mlflow.tracking import MlflowClient

        self._client, own = MlflowClient(), _own_id(workdir, "mlflow")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.effnet_jax_id = '{own}'", max_results=1)
        if not found:
            tags, title = {"effnet_jax_id": own}, workdir.resolve().name
            found = [self._client.create_run(number, tags=tags, run_name=title)]
            self._client.log_dict(found[0].info.run_id, config, "config.json")
        self._id = found[0].info.run_id
        self._client.update_run(self._id, "RUNNING")

    def scalars(self, step: int, row: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in row.items()]
        self._client.log_batch(self._id, metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Background(Writer):
    """Runs a writer in a thread, so that no server delays a step or ends a run."""

    def __init__(self, writer: Writer, name: str):
        self._writer, self._name, self._failed = writer, name, False
        self._rows: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def scalars(self, step: int, row: dict[str, float]) -> None:
        self._rows.put((step, row))

    def close(self) -> None:
        self._rows.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            say(
                f"{self._name} did not accept all metrics within {CLOSE_SECONDS:g} s; "
                "metrics.jsonl has all of them"
            )

    def _work(self) -> None:
        while (item := self._rows.get()) is not None:
            self._try(lambda item=item: self._writer.scalars(*item))
        self._try(self._writer.close)

    def _try(self, work: Any) -> None:
        try:
            work()
        except Exception as error:  # These packages have no common type of error.
            if not self._failed:
                say(f"can't send metrics to {self._name}: {error}. The run goes on")
            self._failed = True


KINDS = {"wandb": WandB, "mlflow": MLflow}


def check(names: Collection[str]) -> None:
    """Raises UserError if a writer lacks its package, its key or its server."""
    for name, kind in KINDS.items():
        if name not in names:
            continue
        if importlib.util.find_spec(kind.package) is None:
            raise UserError(
                f"config.writers has {name!r}, whose package is not installed: "
                f"pip install '{kind.extra}'"
            )
        logging.getLogger(kind.package).setLevel(logging.ERROR)
        kind.check()


def open_trackers(
    names: Collection[str], workdir: pathlib.Path, config: dict[str, Any]
) -> list[Writer]:
    """The writers of KINDS among `names`; raises UserError if a server refuses."""
    opened = []
    for name in [name for name in KINDS if name in names]:
        try:
            opened.append(Background(KINDS[name](workdir, config), name))
        except Exception as error:  # These packages have no common type of error.
            text = f"config.writers has {name!r}, which can't be used: {error}"
            raise UserError(text) from error
    return opened


def _own_id(workdir: pathlib.Path, name: str) -> str:
    """The id of a workdir at a server, kept in a file for when the run resumes."""
    path = workdir / f"{name}_id.txt"
    if not path.exists():
        files.write_atomically(path, uuid.uuid4().hex)
    return path.read_text()
