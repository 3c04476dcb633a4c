"""Checkpoints: the only file that knows Orbax.

A checkpoint is one folder, `checkpoints/STEP`, that appears by a rename when it is whole: a process
killed while it saves leaves a folder with a temporary name, and every earlier checkpoint, behind.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from effnet_jax.errors import UserError, check_choice
from effnet_jax.trees import shapes_by_name

PyTree = Any
Shapes = dict[str, tuple[int, ...]]
FOLDER = "checkpoints"
METRICS = ("ema_top1", "raw_top1", "ema_top5", "raw_top5")


def check_config(config: ConfigDict) -> None:
    """Raises UserError for values of `config.checkpoint` that can't be meant."""
    check_choice("config.checkpoint.resume", config.resume, ("auto", "never"))
    check_choice("config.checkpoint.best_metric", config.best_metric, METRICS)
    if config.keep_newest < 1 or config.keep_best < 0:
        raise UserError(
            "config.checkpoint.keep_newest must be at least 1 and keep_best at least 0; "
            f"got {config.keep_newest} and {config.keep_best}"
        )


def describe_difference(saved: Shapes, wanted: Shapes, most: int = 8) -> str:
    """Arrays that two trees don't share, or share with other shapes; empty where there are none.

    Args:
      saved, wanted: shapes by name.
      most: lines at the most.
    """
    lines = []
    for name in sorted(saved | wanted):
        if saved.get(name) != wanted.get(name):
            was, now = saved.get(name, "absent"), wanted.get(name, "absent")
            lines.append(f"  {name}: checkpoint {was}, model {now}")
    more = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)


class Checkpoints:
    """The checkpoints of one workdir.

    Use as a context: leaving it waits for the last save, so that a save that failed is never
    silent.
    """

    def __init__(self, workdir: str | pathlib.Path, config: ConfigDict, read_only: bool = False):
        """Opens the folder.

        Args:
          workdir: of the run.
          config: `config.checkpoint`.
          read_only: for evaluation; nothing is created or deleted.
        """
        self._folder = pathlib.Path(workdir).resolve() / FOLDER
        self._read_only = read_only

        def metric(metrics: dict[str, float]) -> float:
            return metrics[config.best_metric]

        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(config.keep_newest),
                checkpoint_managers.BestN(
                    get_metric_fn=metric,
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=metric,  # Orbax writes the metrics down only where this is given.
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
        )
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=ocp.PyTreeCheckpointHandler()
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()  # Waits for the save under way.

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps()) if self._folder.is_dir() else []

    def save(self, step: int, state: PyTree, metrics: dict[str, float] | None = None) -> None:
        """Starts to save; returns when the state may be donated. Raises if the last save failed."""
        self._manager.check_for_errors()
        self._manager.save(step, args=ocp.args.PyTreeSave(state), metrics=metrics)

    def wait(self) -> None:
        """Until the last save is on disk."""
        self._manager.wait_until_finished()

    def restore(
        self,
        shapes: PyTree,
        sharding: Sharding,
        step: int | None = None,
        say: Callable[[str], None] = print,
    ) -> PyTree | None:
        """A saved state, or the part of it that is asked for; None where there is none.

        Args:
          shapes: the state's shapes, as from `jax.eval_shape`, or a dict of some of its parts.
          sharding: where to put every array.
          step: which; by default the newest that can be read.
          say: told of every checkpoint that can't be read; it is passed over and put aside.

        Raises:
          UserError: the step isn't there, the checkpoint is of another model or optimizer, or
            there are checkpoints and none can be read.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"no checkpoint of step {step} in {self._folder}; there are: {known}")
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
        )
        arguments = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        unreadable = []
        for candidate in [step] if step is not None else reversed(steps):
            try:
                saved = shapes_by_name(self._manager.item_metadata(candidate).tree)
                self._check_same(saved, shapes_by_name(shapes), candidate)
                restored = self._manager.restore(candidate, args=arguments)
                self._put_aside(unreadable)
                return restored
            except UserError:
                raise
            except Exception as error:  # Damage shows as any of a dozen kinds of error.
                reason = str(error).strip().partition("\n")[0][:200]
                say(f"checkpoint {candidate} in {self._folder} can't be read: {reason}")
                unreadable.append(candidate)
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read (tried {step or steps}); "
                "the files are left as they are"
            )
        return None

    def _put_aside(self, steps: list[int]) -> None:
        """Makes room for these steps to be saved again; what is there is moved, not deleted."""
        if self._read_only or not steps:
            return
        aside = self._folder.parent / f"unreadable_{FOLDER}"
        aside.mkdir(exist_ok=True)
        for step in steps:
            number = sum(path.name.partition("_")[0] == str(step) for path in aside.iterdir())
            os.replace(self._folder / str(step), aside / f"{step}_{number}")
        self._manager.reload()

    def _check_same(self, saved: Shapes, wanted: Shapes, step: int) -> None:
        where = f"checkpoint {step} in {self._folder}"
        parts = {name.partition("/")[0] for name in wanted}
        saved = {name: shape for name, shape in saved.items() if name.partition("/")[0] in parts}

        def of_model(shapes: Shapes) -> Shapes:
            kinds = ("params", "batch_stats")
            return {name: shapes[name] for name in shapes if name.partition("/")[0] in kinds}

        if lines := describe_difference(of_model(saved), of_model(wanted)):
            raise UserError(
                f"{where} was written by another model:\n{lines}\n"
                "Use the model that wrote it (see config.json there), or another --workdir"
            )
        if describe_difference(saved, wanted):
            raise UserError(
                f"{where} was written with another optimizer than this config's; use the one in "
                "config.json there, or another --workdir"
            )
