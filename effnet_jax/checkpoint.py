"""Checkpoints; the only file that imports Orbax.

A checkpoint is a folder, `checkpoints/STEP`, that appears by a rename when it is complete. Its
files are then read back and listed in a manifest, and only after that may an earlier checkpoint be
deleted. The newest step is not kept in memory: the folder is listed every time.

Orbax's retention policies decide what is deleted. Its CheckpointManager (0.12.8) is not used. It
deletes when a checkpoint is committed, before it has been read back. It keeps a list of steps in
memory, including those that failed. It creates a workdir that has vanished. A disk error on one
process leaves the others waiting.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict

from effnet_jax.errors import SaveFailed, UserError
from effnet_jax.parallel import abstract
from effnet_jax.run import buckets, files, manifest
from effnet_jax.run.checkpoint_folders import absolute, open_folder
from effnet_jax.run.processes import ALONE, Alone, OtherFailed
from effnet_jax.run.quiet import log_handlers_kept
from effnet_jax.run.writers import say
from effnet_jax.trees import shapes_by_name

with log_handlers_kept():
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

PyTree = Any
T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]
FOLDER = "checkpoints"
TEMPORARY = ocp.path.step.TMP_DIR_SUFFIX  # In the name of a folder that is being written.
VARIABLES = ("params", "batch_stats")
CONTENT = ("config", "classes")  # JSON files of a workdir.
FACTS = ("model", "preprocess", "classes")
DELETED_NOW = "it was deleted while it was read"
TRIES = 20  # For reading the newest checkpoint while its run deletes checkpoints.
SECONDS = 1200  # Limit for Orbax to write, and for the first process to read the files back.
DISK = "disk: "  # Prefix of a process's note about a save that its disk refused.


def differing(saved: Shapes, wanted: Shapes) -> list[str]:
    """Names of the arrays that only one of two trees has or whose shapes differ."""
    return [name for name in sorted(saved | wanted) if saved.get(name) != wanted.get(name)]


def describe_difference(saved: Shapes, wanted: Shapes, names: list[str], most: int = 8) -> str:
    """One line for each of the differing `names`, and at most `most` of these."""
    was, now = (collections.defaultdict(lambda: "absent", shapes) for shapes in (saved, wanted))
    lines = [f"  {name}: checkpoint {was[name]}, model {now[name]}" for name in names[:most]]
    more = [f"  ... and {len(names) - most} more"] if len(names) > most else []
    return "\n".join(lines + more)


class Saved(NamedTuple):
    """A checkpoint as the retention policies see it; `metrics` is the score for "best"."""

    step: int
    metrics: float | None
    verified: bool


class OnceVerified(policies.AnyPreservationPolicy):
    """Applies policies to the verified checkpoints, and preserves all newer ones."""

    def should_preserve(self, checkpoints: Sequence[Saved], *, context: Any) -> list[bool]:
        verified = [each for each in checkpoints if each.verified]
        kept = super().should_preserve(verified, context=context)
        steps = {each.step for each, keep in zip(verified, kept, strict=True) if keep}
        newest = max((each.step for each in verified), default=-1)
        return [each.step in steps or each.step > newest for each in checkpoints]


class Checkpoints:
    """The checkpoints of one workdir; `good_step` is the last one verified or restored, or None.

    All processes of a run call the same methods; the first lists, verifies, renames and deletes.
    Use as a context: leaving it waits for the last save, so that a failed save is never silent.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        config: ConfigDict,
        processes: Alone = ALONE,
        flush: Callable[[], None] = lambda: None,
    ):
        """Makes the workdir if necessary; `config` is the section `checkpoint` of a config.

        `flush` copies the files that the run has written to the bucket. A checkpoint in a bucket
        gets its manifest, without which it doesn't count, only after `flush` has returned.
        """
        self._folder, self._best = absolute(workdir) / FOLDER, config.best_metric
        self._processes, self._flush = processes, flush
        self._store = open_folder(self._folder)
        if buckets.is_bucket(workdir):
            _limit_retries()
        if processes.is_first:
            self._store.make_workdir()
            self._store.remove_leftovers(TEMPORARY)
        best = {"get_metric_fn": lambda score: score, "keep_checkpoints_without_metrics": False}
        self._policy = OnceVerified(
            [policies.LatestN(config.keep_newest), policies.BestN(n=config.keep_best, **best)]
        )
        self._orbax = ocp.AsyncCheckpointer(
            _handler(),
            async_options=ocp.AsyncOptions(timeout_secs=SECONDS, barrier_sync_fn=self._meet),
        )
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: concurrent.futures.Future | None = None
        self._save = ""  # Name of the last save, the same on all processes.
        self._note_good(None)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            (self.wait if kind is None else self.settle)()
        finally:
            self._background.shutdown()
            self._orbax.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return [step for step in _steps(self._folder) if self._store.is_whole(str(step))]

    def save(self, step: int, state: PyTree, metrics: dict[str, float] | None = None) -> None:
        """Starts to save; returns when the state may be donated.

        A disk that is full or fails does not stop the run: the error is printed, the files of this
        save are removed, and the next save tries again. A save that fails on one process fails on
        all. Other errors, including those of the previous save, are raised.
        """
        self.settle()
        items = {"default": ocp.args.PyTreeSave(state)}
        if metrics is not None:
            items["metrics"] = ocp.args.JsonSave(metrics)
        self._save = f"save {next(_saves)}"
        try:
            # Orbax would create a vanished workdir again, without its other files. If it can't
            # create a folder, the processes would wait for each other for minutes.
            if refused := self._processes.as_first(
                "try the disk", self._store.try_to_write, SECONDS
            ):
                raise OSError(refused, os.strerror(refused), str(self._folder))
            path, items = self._folder / str(step), ocp.args.Composite(**items)
            self._orbax.save(path, args=items, force=self._store.overwrites)
        except Exception as error:
            self._finish(step, error)
        else:
            self._saving = self._background.submit(self._finish, step)

    def settle(self) -> None:
        """Waits until the last save has succeeded or failed."""
        if saving := self._saving:
            self._saving = None
            saving.result()

    def wait(self) -> None:
        """Waits until the last save is on disk and verified; raises SaveFailed if it failed."""
        self.settle()
        if self._failure:
            good = self.good_step or "none yet"
            raise SaveFailed(f"{self._failure}. Last good checkpoint: {good}")

    def alarm(self, step: int, save_every: int) -> str | None:
        """A line to print if the last good checkpoint is older than two intervals between saves."""
        if step - (self.good_step or 0) <= 2 * save_every:
            return None
        alarm = f"ALARM: {self._age(step)}, and one is planned every {save_every} steps"
        return f"{alarm}. {self._failure}" if self._failure else alarm

    def restore(
        self, shapes: PyTree, sharding: Sharding | PyTree, step: int | None = None
    ) -> PyTree | None:
        """A saved state with new shardings, or some parts of it; None if there is no checkpoint.

        Args:
          shapes: the state's shapes, as from `jax.eval_shape`, or a dict of some of its parts.
          sharding: one for all arrays, or a tree of them that is a prefix of `shapes`.
          step: by default the newest that can be read; damaged ones are reported and moved aside.

        Raises UserError if there is no such step, if it is of another model or optimizer, or if
        there are checkpoints and none can be read.
        """
        self.settle()
        item = abstract(shapes, sharding)

        def read(path: pathlib.Path) -> PyTree:
            _check_same(path, shapes_by_name(shapes))
            read = _read(path, item, ocp.checkpoint_utils.construct_restore_args(item))
            if jax.default_backend() != "cpu":
                return read
            # On a CPU the arrays may lie in Orbax's memory, which a step can't reuse: copy them.
            return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), read)

        paths = _candidates(self._folder, step, self._processes)
        if not paths:
            return None
        path, state, unreadable = _read_first(paths, read, self._processes)
        self._note_good(int(path.name))
        if self._processes.is_first and unreadable:
            self._move_aside(unreadable)
        return state

    def _meet(self, key: str, timeout_ms: int) -> None:
        """Lets Orbax's threads wait for those of the other processes, unless one has failed."""
        self._processes.barrier(f"{self._save} {key}", timeout_ms / 1000, unless=self._save)

    def _finish(self, step: int, error: Exception | None = None) -> None:
        """Completes a save, with the same result on all processes.

        `error` is why the save could not start. Without one, this runs in the background.
        """
        path = self._folder / str(step)
        try:
            if error is None:
                self._orbax.wait_until_finished()
                if self._processes.is_first:
                    self._flush()
                    manifest.write(path, **_facts(self._folder.parent, step))
        except Exception as failure:
            error = failure
        note = (DISK if self._is_of_disk(error) else "") + _first_line(error) if error else ""
        notes = self._processes.barrier(self._save, 2 * SECONDS, note)
        if refused := {index: text for index, text in notes.items() if text.startswith(DISK)}:
            self._note_failure(step, _listed(refused, self._processes))
        elif others := _listed(notes, self._processes):
            raise error or OtherFailed(others)
        else:
            self._note_good(step)
            if self._processes.is_first:
                self._delete_old()

    def _is_of_disk(self, error: Exception) -> bool:
        """Whether an error comes from the disk or the bucket, or from the way to it."""
        return not isinstance(error, OtherFailed) and self._store.refused(error)

    def _note_good(self, step: int | None) -> None:
        # `_failure` says why the last save left no checkpoint.
        self.good_step, self._good_since, self._failure = step, time.monotonic(), None

    def _note_failure(self, step: int, reason: str) -> None:
        self._failure = f"checkpoint {step} could not be saved: {reason}"
        say(f"{self._failure}. The run goes on; {self._age(step)}")
        for _ in range(10):  # Orbax keeps all errors but the first for later calls.
            with contextlib.suppress(Exception):
                self._orbax.wait_until_finished()
                break
        if self._processes.is_first:
            with contextlib.suppress(OSError):  # An unreachable bucket; the next save removes them.
                self._store.remove_leftovers(TEMPORARY)

    def _age(self, step: int) -> str:
        minutes = (time.monotonic() - self._good_since) / 60
        age = f"{step - (self.good_step or 0)} steps and {minutes:.0f} minutes"
        if self.good_step:
            return f"the last good checkpoint is {age} old"
        return f"no checkpoint yet, {age} after the start"

    def _delete_old(self) -> None:
        try:
            saved = [self._describe(step) for step in self.steps()]
            kept = self._policy.should_preserve(saved, context=policies.PreservationContext())
            for each, keep in zip(saved, kept, strict=True):
                if not keep:
                    self._store.delete(str(each.step))
            self._store.remove_leftovers(TEMPORARY)
        except OSError as error:
            say(f"can't delete old checkpoints in {self._folder}: {error}")

    def _describe(self, step: int) -> Saved:
        path, score = self._folder / str(step), None
        with contextlib.suppress(OSError, ValueError, KeyError):  # Most checkpoints have no scores.
            score = float(files.read_json(path / "metrics" / "metrics")[self._best])
        return Saved(step, score, manifest.exists(path))

    def _move_aside(self, paths: list[pathlib.Path]) -> None:
        """Moves checkpoints out of the way, so that their steps can be saved again."""
        self._store.move([path.name for path in paths], f"unreadable_{FOLDER}")


def read_weights(
    path: str | pathlib.Path,
    step: int | None = None,
    weights: str = "ema",
    processes: Alone = ALONE,
) -> tuple[int, dict[str, PyTree], dict[str, Any]] | None:
    """The "ema" or "raw" weights of a run at a `step`, by default the newest that can be read.

    `path` is a workdir, or the folder of one checkpoint, which may have been copied elsewhere.
    Returns None if there is no checkpoint, else the step, {"params": ..., "batch_stats": ...} as
    NumPy arrays, and FACTS. Raises UserError if there is no such step, or none can be read.
    """
    path = absolute(path)

    def read(path: pathlib.Path) -> tuple[PyTree, dict[str, Any]]:
        verified = manifest.exists(path)
        facts = manifest.read(path) if verified else _facts(path.parent.parent, path.name)
        if not facts.keys() >= {*FACTS}:
            raise UserError(f"{path} has no {manifest.NAME} with the model; give the run's workdir")
        tree = _saved_tree(path)
        item = {"ema": tree["ema"]} if weights == "ema" else {key: tree[key] for key in VARIABLES}
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        found = _read(path, item, numpy)
        return found["ema"] if weights == "ema" else found, facts

    def list_paths() -> list[pathlib.Path]:
        return [path] if _is_whole(path) else _candidates(path / FOLDER, step, processes)

    paths = list_paths()
    for tries_left in reversed(range(TRIES)):
        if not paths:
            return None
        try:
            _, (variables, facts), _ = _read_first(paths, read, processes)
        except _NoneReadable:
            # A run that continues deletes checkpoints while they are read, and has newer ones.
            before, paths = paths, list_paths()
            if paths == before or not tries_left:
                raise
        else:
            return int(facts["step"]), variables, {key: facts[key] for key in FACTS}


def _limit_retries() -> None:
    """Lets TensorStore give up after about a minute; by default it tries for a quarter of an hour.

    The next save waits for the one before. Orbax 0.12.8 has no public way: no handler, argument or
    option, including those of ocp.v1.Context, takes a TensorStore context or retries. TensorStore
    reads no environment variable for them.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    retries = {"max_retries": 7, "initial_delay": "1s", "max_delay": "16s"}
    tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT["gcs_request_retries"] = retries
    tensorstore_utils._BASE_TS_CONTEXT["gcs_request_retries"] = retries


_saves = itertools.count()  # Gives the same numbers on all processes, which save alike.


def _handler() -> ocp.CompositeCheckpointHandler:
    # By default every device writes a slice of replicated arrays, and slicing is compiled for each
    # shape: B0's first save from 8 devices blocked the loop for 22 s instead of 1 s.
    kinds = ocp.type_handlers
    handlers = {kind: kinds.get_type_handler(kind) for kind in kinds.supported_types()}
    handlers[jax.Array] = kinds.ArrayHandler(use_replica_parallel=False)
    registry = kinds.create_type_handler_registry(*handlers.items())
    return ocp.CompositeCheckpointHandler(
        default=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        metrics=ocp.JsonCheckpointHandler("metrics"),
    )


def _facts(workdir: pathlib.Path, step: int | str) -> dict[str, Any]:
    """The step, and FACTS if the workdir has them; its config may change after this step."""
    try:
        config, classes = (files.read_json(workdir / f"{name}.json") for name in CONTENT)
    except FileNotFoundError:
        return {"step": step}
    facts = config | {"classes": classes}
    return {"step": step, **{key: facts[key] for key in FACTS}}


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(name) for name in open_folder(folder).names() if name.isdigit())


def _is_whole(path: pathlib.Path) -> bool:
    return open_folder(path.parent).is_whole(path.name)


def _candidates(folder: pathlib.Path, step: int | None, processes: Alone) -> list[pathlib.Path]:
    """The checkpoints that the first process sees, newest first; or only the one of a step."""
    steps = processes.as_first("list checkpoints", lambda: _steps(folder), SECONDS)
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise UserError(f"no checkpoint of step {step} in {folder}; available steps: {known}")
    return [folder / str(each) for each in ([step] if step is not None else reversed(steps))]


class _NoneReadable(UserError):
    """There are checkpoints, but none can be read."""


@contextlib.contextmanager
def _without_late_errors() -> Iterator[None]:
    """Suppresses the errors of TensorStore's threads that finish after a failed read has ended."""
    hook = sys.unraisablehook
    is_late = "Event loop is closed".__eq__
    sys.unraisablehook = lambda error: is_late(str(error.exc_value)) or hook(error)
    try:
        yield
    finally:
        sys.unraisablehook = hook


@_without_late_errors()
def _read_first(
    paths: list[pathlib.Path], read: Callable[[pathlib.Path], T], processes: Alone
) -> tuple[pathlib.Path, T, list[pathlib.Path]]:
    """The first checkpoint that all processes can read, its content, and those skipped before."""
    for number, path in enumerate(paths):
        where = f"checkpoint {path.name} in {path.parent}"
        damage = processes.as_first("verify", lambda path=path: _find_damage(path), 2 * SECONDS)
        if not damage:
            content, note = None, ""
            try:
                content = read(path)
            except UserError:
                raise
            except Exception as error:  # Damage causes a dozen types of errors.
                note = _first_line(error)[:200] if path.exists() else DELETED_NOW
            damage = _listed(processes.barrier(f"read {where}", 2 * SECONDS, note), processes)
        if not damage:
            return path, content, paths[:number]
        say(f"{where} can't be read: {damage}")
    tried = ", ".join(path.name for path in paths)
    raise _NoneReadable(
        f"no checkpoint in {paths[0].parent} can be read (tried {tried}); the files were not "
        "changed. Restore them from a copy, or give another --workdir"
    )


def _find_damage(path: pathlib.Path) -> str | None:
    damage = None
    if not _is_whole(path):
        damage = "it was never finished"
    elif manifest.exists(path):
        damage = manifest.find_damage(path)
    else:
        say(
            f"checkpoint {path.name} in {path.parent} has no {manifest.NAME}: its run is verifying "
            "it, or was killed before that. Reading it without verification"
        )
    return DELETED_NOW if damage and not path.exists() else damage


def _read(path: pathlib.Path, item: PyTree, restore_args: PyTree) -> PyTree:
    """Arrays like `item`, which may have only some of the saved parts."""
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    # Not with the checkpointer, in which a process that can read waits for those that can't.
    return _handler().restore(path, args=ocp.args.Composite(default=arguments))["default"]


def _saved_tree(path: pathlib.Path) -> PyTree:
    """Shapes and dtypes of a checkpoint's arrays, as a tree of dicts."""
    tree = _handler().metadata(path).item_metadata["default"].tree
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def _check_same(path: pathlib.Path, wanted: Shapes) -> None:
    """Raises UserError if the names or shapes of a checkpoint's arrays are not the wanted ones."""
    parts = {name.partition("/")[0] for name in wanted}
    saved = shapes_by_name({key: part for key, part in _saved_tree(path).items() if key in parts})
    if not (names := differing(saved, wanted)):
        return
    where, workdir = f"checkpoint {path.name} in {path.parent}", path.parent.parent
    offer = f"To start a new run from these weights, add --config.init.weights={workdir}"
    of_model = [name for name in names if name.startswith(VARIABLES)]
    if not of_model:
        raise UserError(
            f"{where} was written with another optimizer than this config's; use the optimizer in "
            f"{workdir}/config.json, or another --workdir. {offer}"
        )
    only_classes = all("params/classifier/" in name for name in of_model)
    raise UserError(
        f"{where} was written by another model:\n{describe_difference(saved, wanted, of_model)}\n"
        f"Use the model in {workdir}/config.json, or another "
        f"--workdir{'. ' + offer if only_classes else ''}"
    )


def _listed(notes: dict[int, str], processes: Alone) -> str:
    """Joins the notes, with their processes if there are several; "" if all notes are empty."""
    by_text = collections.defaultdict(list)
    for index, note in notes.items():
        if note:
            by_text[note.removeprefix(DISK)].append(str(index))
    named = (f"process {', '.join(who)}: {text}" for text, who in by_text.items())
    return "; ".join(named if processes.count > 1 else by_text)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
