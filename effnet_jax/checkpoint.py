"""Checkpoints: the only file that knows Orbax.

A checkpoint is one folder, `checkpoints/STEP`, that appears by a rename when it is whole: a process
killed while it saves leaves a folder with a temporary name, and every earlier checkpoint, behind.
Then its files are read back and listed in a manifest, and only then may an earlier one go. The disk
alone knows what there is: nothing here remembers a newest step.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from ml_collections import ConfigDict

from effnet_jax.errors import SaveFailed, UserError
from effnet_jax.parallel import laid_out
from effnet_jax.run import manifest
from effnet_jax.run.processes import ALONE, Alone
from effnet_jax.run.writers import say
from effnet_jax.trees import path_name, shapes_by_name

PyTree = Any
T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]
FOLDER = "checkpoints"
# Numbers that the state got in a later release: in a checkpoint without them they are 0.
ADDED_LATER = ("skipped", "rollbacks")
CLASSIFIER = "params/classifier/"
DELETED = ".deleted"
SECONDS = 1200  # That Orbax may take to write, and the first host to read back what was written.
DISK = "disk: "  # Starts what a host notes of a save that its disk refused.
ANEW = "There, --config.checkpoint.init_from={} starts a new run from these weights alone"


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


@dataclasses.dataclass(frozen=True)
class Age:
    """How long ago the last good checkpoint was."""

    steps: int
    minutes: float


class Checkpoints:
    """The checkpoints of one workdir.

    Every process of a run makes one, and they call it alike; the first process lists, checks,
    names and deletes. Use as a context: leaving it waits for the last save, so that a save that
    failed is never silent.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        config: ConfigDict,
        read_only: bool = False,
        processes: Alone = ALONE,
    ):
        """Opens the folder.

        Args:
          workdir: of the run.
          config: `config.checkpoint`.
          read_only: for evaluation; nothing is created or deleted.
          processes: of the run.
        """
        self._folder = pathlib.Path(workdir).resolve() / FOLDER
        self._config, self._processes = config, processes
        self._manages = jax.process_index() == 0 and not read_only
        if self._manages:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        # By default every device writes a slice of what all of them have, and each shape's slices
        # are compiled: B0's first save from 8 devices kept the loop for 22 s instead of 1.
        kinds = ocp.type_handlers
        handlers = {kind: kinds.get_type_handler(kind) for kind in kinds.supported_types()}
        handlers[jax.Array] = kinds.ArrayHandler(use_replica_parallel=False)
        registry = kinds.create_type_handler_registry(*handlers.items())
        self._reader = ocp.CompositeCheckpointHandler(default=ocp.PyTreeCheckpointHandler())
        writer = ocp.CompositeCheckpointHandler(
            default=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            metrics=ocp.JsonCheckpointHandler("metrics"),
        )
        self._orbax = ocp.AsyncCheckpointer(
            writer,
            async_options=ocp.AsyncOptions(timeout_secs=SECONDS, barrier_sync_fn=self._meet),
        )
        self._save = ""  # Name of the save on all hosts.
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: concurrent.futures.Future | None = None
        self._failure: str | None = None  # Why there is no checkpoint of the last save.
        self.good_step: int | None = None  # Of the last checkpoint that is known to be good ...
        self._good_since = time.monotonic()  # ... and when that was, or the start.

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
            else:
                self.settle()
        finally:
            self._background.shutdown()
            self._orbax.close()

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, oldest first; from the disk, every time."""
        return [step for step in self._folders() if self._is_committed(step)]

    def save(self, step: int, state: PyTree, metrics: dict[str, float] | None = None) -> None:
        """Starts to save; returns when the state may be donated.

        A disk that is full, or fails, stops no run: it is said, what was written is removed, and
        the next save tries again. `age` and `alarm` tell how long that has gone on. A save that
        fails on one host fails on all.

        Raises:
          Exception: of this save, or of the one before, that has nothing to do with a disk.
        """
        self.settle()
        items = {"default": ocp.args.PyTreeSave(state)}
        if metrics is not None:
            items["metrics"] = ocp.args.JsonSave(metrics)
        arrays = _digest(shapes_by_name(state))
        self._save = f"save {next(_saves)}"
        try:
            # Orbax would make a workdir that has vanished anew, without all else that was in it;
            # and where it can't make a folder on the first host, it keeps the others for minutes.
            if refused := self._of_first([self._try_folder() if self._manages else 0])[0]:
                if refused == errno.ENOENT:
                    raise FileNotFoundError(f"{self._folder} has vanished")
                raise OSError(refused, os.strerror(refused), str(self._folder))
            self._orbax.save(self._folder / str(step), args=ocp.args.Composite(**items))
        except Exception as error:
            self._finish(step, arrays, error)
        else:
            self._saving = self._background.submit(self._finish, step, arrays)

    def settle(self) -> None:
        """Until the last save is over, well or badly."""
        if saving := self._saving:
            self._saving = None
            saving.result()

    def wait(self) -> None:
        """Until the last save is on disk and checked; raises SaveFailed if it failed."""
        self.settle()
        if self._failure:
            step = self.good_step
            raise SaveFailed(f"{self._failure}. Last good checkpoint: {step or 'none yet'}")

    def age(self, step: int) -> Age:
        """Steps and minutes since the last good checkpoint, or the start where there is none."""
        return Age(step - (self.good_step or 0), (time.monotonic() - self._good_since) / 60)

    def alarm(self, step: int, save_every: int) -> str | None:
        """A line to show where the last good checkpoint is older than twice the steps planned."""
        if self.age(step).steps <= 2 * save_every:
            return None
        reason = f". {self._failure}" if self._failure else ""
        planned = f"one is planned every {save_every} steps"
        return f"ALARM: {self._describe_age(step)}, and {planned}{reason}"

    def _describe_age(self, step: int) -> str:
        age = self.age(step)
        long = f"{age.steps} steps and {age.minutes:.0f} minutes"
        if self.good_step is None:
            return f"no checkpoint yet, {long} after the start"
        return f"the last good checkpoint is {long} old"

    def restore(
        self, shapes: PyTree, sharding: Sharding | PyTree, step: int | None = None
    ) -> PyTree | None:
        """A saved state, or the part of it that is asked for; None where there is none.

        The arrays are laid out as asked, on however many devices and hosts they were saved from.

        Args:
          shapes: the state's shapes, as from `jax.eval_shape`, or a dict of some of its parts.
          sharding: where to put the arrays: one for all, or a tree of them like `shapes` or the
            top of it.
          step: which; by default the newest that is whole. Those that are not are told of, passed
            over and put aside.

        Raises:
          UserError: the step isn't there, the checkpoint is of another model or optimizer, or
            there are checkpoints and none can be read.
        """

        def read(step: int) -> PyTree:
            saved, wanted = self._shapes(step), shapes_by_name(shapes)
            late = {name for name in ADDED_LATER if name in wanted and name not in saved}
            wanted = {name: shape for name, shape in wanted.items() if name not in late}
            self._check_same(saved, wanted, step)
            places = jax.tree.broadcast(sharding, shapes)
            restored = self._read(step, laid_out(shapes, places), late)

            def fill(leaf: Any, like: jax.ShapeDtypeStruct, place: Sharding) -> jax.Array:
                if leaf is not ocp.PLACEHOLDER:
                    return leaf
                zeros = np.zeros(like.shape, like.dtype)
                return jax.make_array_from_callback(like.shape, place, zeros.__getitem__)

            return jax.tree.map(fill, restored, shapes, places)

        found = self._newest(read, step)
        if found is None:
            return None
        self._check_in(found[0], shapes)
        return found[1]

    def restore_weights(
        self, fresh: PyTree, weights: str, step: int | None = None
    ) -> tuple[int, PyTree] | None:
        """Weights for a new run; None where there is no checkpoint.

        A classifier for another number of classes is not taken.

        Args:
          fresh: "params" and "batch_stats" of the new run.
          weights: which to take: "ema" or "raw".
          step: of which checkpoint; by default the newest that is whole.

        Returns:
          The step, and a tree as `fresh` with the arrays laid out alike; what was not taken is
          that of `fresh`.

        Raises:
          UserError: as `restore`.
        """
        prefix = "ema/" if weights == "ema" else ""

        def read(step: int) -> PyTree:
            saved, wanted = self._shapes(step), shapes_by_name(fresh)
            saved = {
                name.removeprefix(prefix): shape
                for name, shape in saved.items()
                if name.startswith((f"{prefix}params/", f"{prefix}batch_stats/"))
            }
            other = {name for name in wanted if saved.get(name) != wanted[name]}
            if not all(name.startswith(CLASSIFIER) for name in other ^ (saved.keys() - wanted)):
                raise UserError(
                    f"checkpoint {step} in {self._folder} has the weights of another model:\n"
                    f"{describe_difference(saved, wanted)}"
                )
            item = laid_out(fresh, jax.tree.map(lambda leaf: leaf.sharding, fresh))
            item = {"ema": item} if prefix else item
            restored = self._read(step, item, {prefix + name for name in other})
            restored = restored["ema"] if prefix else restored
            if other:
                say(f"not taken, because the classes differ: {', '.join(sorted(other))}")
            return jax.tree.map(
                lambda new, old: old if new is ocp.PLACEHOLDER else new, restored, fresh
            )

        return self._newest(read, step)

    def _newest(self, read: Callable[[int], T], step: int | None) -> tuple[int, T] | None:
        """The newest step that can be read, or the one asked for, and what was read of it."""
        self.settle()
        steps = self._of_first(self._folders())
        if step is not None and step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise UserError(f"no checkpoint of step {step} in {self._folder}; there are: {known}")
        unreadable = []
        for candidate in [step] if step is not None else reversed(steps):
            damage = self._find_damage(candidate) if jax.process_index() == 0 else None
            damaged = self._of_first([damage is not None])[0]
            try:
                found = None if damaged else read(candidate)
            except UserError:
                raise
            except Exception as error:  # Damage shows as any of a dozen kinds of error.
                damage = _first_line(error)[:200]
            # All pass over what one of them can't read.
            notes = self._processes.barrier(
                f"read checkpoint {candidate}", 2 * SECONDS, damage or ""
            )
            damage = self._listed({host: note for host, note in notes.items() if note})
            if not damage:
                self._note_good(candidate)
                self._put_aside(unreadable)
                return candidate, found
            say(f"checkpoint {candidate} in {self._folder} can't be read: {damage}")
            unreadable.append(candidate)
        if steps:
            raise UserError(
                f"no checkpoint in {self._folder} can be read (tried {step or steps}); "
                "the files are left as they are"
            )
        return None

    def _folders(self) -> list[int]:
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def _is_committed(self, step: int) -> bool:
        path = self._folder / str(step)
        marked = ocp.path.step.is_path_finalized(path) and (path / "_CHECKPOINT_METADATA").is_file()
        return marked or manifest.exists(path)

    def _find_damage(self, step: int) -> str | None:
        path = self._folder / str(step)
        if not self._is_committed(step):
            return "it was never finished"
        if manifest.exists(path):
            return manifest.find_damage(path)
        say(
            f"checkpoint {step} in {self._folder} has no {manifest.NAME}: an earlier release wrote "
            "it, or its run was killed before it was checked. It is read all the same"
        )
        return None

    def _shapes(self, step: int) -> Shapes:
        metadata = self._orbax.metadata(self._folder / str(step))
        return shapes_by_name(metadata.item_metadata["default"].tree)

    def _read(self, step: int, item: PyTree, left_out: set[str]) -> PyTree:
        """Arrays like `item`, and Orbax's placeholder for those left out, by name."""
        item = jax.tree.map_with_path(
            lambda path, leaf: ocp.PLACEHOLDER if path_name(path) in left_out else leaf, item
        )
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        path = self._folder / str(step)
        # Not by the checkpointer: there a host that can read waits for those that can't.
        restored = self._reader.restore(path, args=ocp.args.Composite(default=arguments))
        restored = restored["default"]
        if jax.default_backend() != "cpu":
            return restored
        # On a CPU the arrays may lie where Orbax read them, which the step can't be given to reuse.
        leaves, tree = jax.tree.flatten(restored)
        for index, leaf in enumerate(leaves):
            if leaf is not ocp.PLACEHOLDER:
                leaves[index] = jax.device_put(leaf, leaf.sharding, may_alias=False)
        return jax.tree.unflatten(tree, leaves)

    def _finish(self, step: int, arrays: str, error: Exception | None = None) -> None:
        """What is left of a save, in the background; all hosts come to the same end.

        Args:
          step: of the state.
          arrays: digest of its shapes.
          error: why this host could not start to save.
        """
        try:
            if error is None:
                self._orbax.wait_until_finished()
                if self._manages:
                    path = self._folder / str(step)
                    manifest.write(path, step=step, arrays=arrays, **self._run())
        except Exception as failure:
            error = failure
        note = "" if error is None else _first_line(error)
        if error is not None and _is_of_disk(error):
            note = DISK + note
        notes = self._processes.gather(self._save, 2 * SECONDS, note)
        if refused := {host: note for host, note in notes.items() if note.startswith(DISK)}:
            self._note_failure(step, self._listed(refused))
            return
        if failed := {host: note for host, note in notes.items() if note}:
            raise error or _OthersFailed(self._listed(failed))
        self._note_good(step)
        if self._manages:
            try:
                self._delete_old()
            except OSError as error:
                say(f"can't delete old checkpoints in {self._folder}: {error}")

    def _try_folder(self) -> int:
        """The system's number of the error, or 0, where a checkpoint's folder is made."""
        path = self._folder / f"try{DELETED}"
        try:
            path.mkdir(exist_ok=True)
            path.rmdir()
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _meet(self, key: str, timeout_ms: int) -> None:
        """Where Orbax's threads wait for those of the other hosts: not for one that has failed."""

        def check() -> None:
            if failed := {
                host: note for host, note in self._processes.gathered(self._save).items() if note
            }:
                raise _OthersFailed(self._listed(failed))

        self._processes.gather(f"{self._save} {key}", timeout_ms / 1000, check=check)

    def _note_good(self, step: int) -> None:
        self.good_step, self._good_since, self._failure = step, time.monotonic(), None

    def _note_failure(self, step: int, reason: str) -> None:
        self._failure = f"checkpoint {step} could not be saved: {reason}"
        say(f"{self._failure}. The run goes on; {self._describe_age(step)}")
        for _ in range(10):  # Of several errors Orbax keeps all but the first for who asks next.
            with contextlib.suppress(Exception):
                self._orbax.wait_until_finished()
                break
        if self._manages:
            self._remove_leftovers()

    def _delete_old(self) -> None:
        """All but the newest that are checked, and the best. Called once the newest is checked."""
        steps = self.steps()
        checked = [step for step in steps if manifest.exists(self._folder / str(step))]
        newest = checked[-self._config.keep_newest :]
        scores = {step: score for step in steps if (score := self._score(step)) is not None}
        best = sorted(scores, key=lambda step: (scores[step], step))[::-1]
        kept = {*newest, *best[: self._config.keep_best]}
        for step in steps:
            if step < newest[-1] and step not in kept:
                path = self._folder / str(step)
                # Half a checkpoint must not look like a whole one, whatever happens in between.
                os.replace(path, path.with_name(path.name + DELETED))
        self._remove_leftovers()

    def _score(self, step: int) -> float | None:
        path = self._folder / str(step) / "metrics" / "metrics"
        try:
            return float(json.loads(path.read_text())[self._config.best_metric])
        except (OSError, ValueError, KeyError):  # Most have none.
            return None

    def _remove_leftovers(self) -> None:
        """Of saves that were killed or failed, and of deletions."""
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if ocp.path.step.TMP_DIR_SUFFIX in path.name or path.name.endswith(DELETED):
                shutil.rmtree(path, ignore_errors=True)

    def _check_in(self, step: int, shapes: PyTree) -> None:
        """Gives a checkpoint that could be read the manifest that it lacks."""
        path = self._folder / str(step)
        if self._manages and not manifest.exists(path):
            arrays = _digest(shapes_by_name(shapes))
            try:
                manifest.write(path, step=step, arrays=arrays, **self._run())
            except OSError as error:
                say(f"can't write {path / manifest.NAME}: {error.strerror}")

    def _run(self) -> dict[str, Any]:
        """What a manifest says of the run, out of the workdir.

        That is a digest of its config; and what the weights belong to, whatever the config becomes
        later: the architecture, the preprocessing and the classes.
        """
        config, classes = (self._folder.parent / name for name in ("config.json", "classes.json"))
        if not (config.is_file() and classes.is_file()):
            return {"config": None}
        text = config.read_bytes()
        values = json.loads(text)
        return {
            "config": hashlib.sha256(text).hexdigest(),
            "model": values["model"],
            "preprocess": values["preprocess"],
            "classes": json.loads(classes.read_text()),
        }

    def _put_aside(self, steps: list[int]) -> None:
        """Makes room for these steps to be saved again; what is there is moved, not deleted."""
        if not self._manages or not steps:
            return
        aside = self._folder.parent / f"unreadable_{FOLDER}"
        aside.mkdir(exist_ok=True)
        for step in steps:
            number = sum(path.name.partition("_")[0] == str(step) for path in aside.iterdir())
            os.replace(self._folder / str(step), aside / f"{step}_{number}")

    def _check_same(self, saved: Shapes, wanted: Shapes, step: int) -> None:
        where = f"checkpoint {step} in {self._folder}"
        parts = {name.partition("/")[0] for name in wanted}
        saved = {name: shape for name, shape in saved.items() if name.partition("/")[0] in parts}

        def of_model(shapes: Shapes) -> Shapes:
            kinds = ("params", "batch_stats")
            return {name: shapes[name] for name in shapes if name.partition("/")[0] in kinds}

        if lines := describe_difference(of_model(saved), of_model(wanted)):
            names = {name for name in saved | wanted if saved.get(name) != wanted.get(name)}
            only_classes = all(CLASSIFIER in name for name in names if "params/" in name)
            offer = ". " + ANEW.format(self._folder.parent) if only_classes else ""
            raise UserError(
                f"{where} was written by another model:\n{lines}\n"
                f"Use the model that wrote it (see config.json there), or another --workdir{offer}"
            )
        if describe_difference(saved, wanted):
            raise UserError(
                f"{where} was written with another optimizer than this config's; use the one in "
                "config.json there, or another --workdir. " + ANEW.format(self._folder.parent)
            )

    def _listed(self, notes: dict[int, str]) -> str:
        """Notes with the processes that they are of, as far as there are others."""
        if self._processes.count == 1:
            return notes.get(0, "").removeprefix(DISK)
        those: dict[str, list[str]] = {}
        for index, note in notes.items():
            those.setdefault(note.removeprefix(DISK), []).append(str(index))
        return "; ".join(f"process {', '.join(names)}: {note}" for note, names in those.items())

    def _of_first(self, values: list[int]) -> list[int]:
        """The first process's values, on all of them: what a disk looks like may differ."""
        if jax.process_count() == 1:
            return values
        first = jax.process_index() == 0
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
        padded = np.array(values if first else [0] * count, np.int32)
        return multihost_utils.broadcast_one_to_all(padded).tolist() if count else []


_saves = itertools.count()  # All hosts of a run save alike.


class _OthersFailed(Exception):
    """This host has nothing to say against a save; the message names those that have."""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _is_of_disk(error: Exception) -> bool:
    """Whether a disk, or what is between it and us, refused: of TensorStore, the text tells."""
    if isinstance(error, TimeoutError | _OthersFailed):  # The first is an OSError, and a host's.
        return False
    return isinstance(error, OSError) or re.search(r"os_error_code='\d+'", str(error)) is not None


def _digest(shapes: Shapes) -> str:
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()
