"""Writes ImageNet as a TFDS data set in ArrayRecord, without TensorFlow.

Everything is made in DATA_DIR/imagenet2012/5.1.0.incomplete, which TFDS takes no notice of:

  lock           held while a process prepares, with its id and host inside
  state.json     the settings, a fingerprint of the images, and which tars were found whole
  reports/       for each shard its images, bytes, repaired and dropped files
  unfinished/    shards being written
  data/          shards that are whole, then the metadata; in the end it becomes 5.1.0

A shard follows from the settings and its images alone and appears under its name when it is whole.
So preparation can be killed at any point: the same command goes on, and ends in the same bytes.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import datetime
import fcntl
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import inputs
from effnet_jax.imagenet.dataset import MINIVAL, NAME, TRAIN, VALIDATION, VERSION, Item
from effnet_jax.imagenet.shards import Report, Settings, Shard, features, make_shard, write_whole
from effnet_jax.run.workers import end_with_parent, heeding_ctrl_c

T = TypeVar("T")
TOOL = "python -m effnet_jax.tools.prepare_imagenet"
# Of an image of side by 4/3 side, generously: to see beforehand whether the disk is large enough.
BYTES_PER_PIXEL = 0.5
RECORD_BYTES = 200  # Of a record beside its image: names, label, index.


def places(data_dir: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the finished data set goes, and where it is worked on."""
    final = data_dir / NAME / VERSION
    return final, final.with_name(f"{VERSION}.incomplete")


# --- Lock and state -------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(work: pathlib.Path) -> Iterator[None]:
    """Holds the lock; raises UserError where another process does. It ends with its process.

    A directory in which nothing was begun is removed again.
    """
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{work} is being prepared by {_holder(work)}; wait until it ends"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if not (work / "state.json").exists():
                shutil.rmtree(work, ignore_errors=True)


def _holder(work: pathlib.Path) -> str:
    return (work / "lock").read_text() or "another process"


def unfinished(data_dir: str) -> str | None:
    """What to say about a data set that preparation has begun in `data_dir`; None if none has."""
    _, work = places(pathlib.Path(data_dir))
    if not all((work / name).exists() for name in ("state.json", "lock")):
        return None
    with open(work / "lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"is being prepared in {work} by {_holder(work)}; wait until it ends"
    command = json.loads((work / "state.json").read_text())["command"]
    return f"is half prepared in {work}. Go on with:\n  {command}"


def _fingerprint(splits: dict[str, list[Item]]) -> str:
    """Of the images' names, labels and lengths; not of where they lie, which may change."""
    digest = hashlib.sha256()
    for split, items in splits.items():
        for item in items:
            digest.update(f"{split} {item.file_name} {item.label} {item.length}\n".encode())
    return digest.hexdigest()


def _agree(work: pathlib.Path, wanted: dict, command: str) -> None:
    """Writes down what is prepared, or raises UserError where it was begun as something else."""
    path = work / "state.json"
    if not path.exists():
        write_whole(path, json.dumps({**wanted, "command": command, "archives": {}}, indent=2))
    state = json.loads(path.read_text())
    differing = [
        "other images" if key == "images" else f"--{key}={state[key]}"
        for key in wanted
        if state[key] != wanted[key]
    ]
    if differing:
        raise UserError(
            f"{work} was begun with {', '.join(differing)}. Go on with the command that began it:\n"
            f"  {state['command']}\nor choose another --data_dir, or remove that directory"
        )


# --- The tars' checksums --------------------------------------------------------------------------


def _md5(path: pathlib.Path) -> str:
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    with open(path, "rb") as file:
        chunks = iter(functools.partial(file.read, 1 << 24), b"")
        for chunk in watched(chunks, f"checksum of {path.name}", size, len, "bytes"):
            digest.update(chunk)
    return digest.hexdigest()


def _check_archives(archives: dict[str, pathlib.Path], work: pathlib.Path) -> None:
    """Raises UserError where a tar is not the official one; remembers that it is."""
    state = json.loads((work / "state.json").read_text())
    for split, path in archives.items():
        stat = path.stat()
        now = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        if state["archives"].get(split) == now:
            continue
        expected = imagenet.ARCHIVES[split]
        if (found := _md5(path)) != expected.md5:
            if not (work / "data").exists():
                (work / "state.json").unlink()  # So that another tar counts as another beginning.
            raise UserError(
                f"{path} has the MD5 {found} and {stat.st_size:,} bytes; ImageNet's has "
                f"{expected.md5} and {expected.size:,}. Download it again, or add --subset if a "
                "part of ImageNet is meant"
            )
        state["archives"][split] = now
        write_whole(work / "state.json", json.dumps(state, indent=2))


def _open_input(root: pathlib.Path) -> inputs.Input:
    """As inputs.open_input; a tar that breaks off is named with its checksum."""
    say(f"indexing {root}")
    try:
        return inputs.open_input(root)
    except inputs.BrokenTar as error:
        expected = imagenet.ARCHIVES[error.split]
        raise UserError(
            f"{error.path} {error}. It has {error.path.stat().st_size:,} bytes and the MD5 "
            f"{_md5(error.path)}; ImageNet's has {expected.size:,} and {expected.md5}. Download "
            "it again"
        ) from None


# --- Progress -------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One plain line for the person who watches."""
    import rich.console

    rich.console.Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def watched(
    parts: Iterable[T], what: str, total: int, measure: Callable[[T], int], unit: str
) -> Iterator[T]:
    """Hands on `parts`, and shows how much is done, how much a second, and the time left.

    A bar on a terminal; elsewhere a line every half minute, and one at the end.

    Args:
      parts: of the work, as they are done.
      what: is done.
      total: of units.
      measure: the units in a part.
      unit: its name.
    """
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    start = said = time.monotonic()
    done, status = 0, ""
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.fields[status]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=total, status="")
        for part in parts:
            yield part
            done += measure(part)
            now = time.monotonic()
            rate = done / max(now - start, 1e-9)
            left = datetime.timedelta(seconds=round((total - done) / max(rate, 1e-9)))
            status = f"{done:,} of {total:,} {unit}  {rate:,.0f} {unit}/s  left {left}"
            bar.update(task, completed=done, status=status)
            if bar.disable and now - said > 30:
                said = now
                say(f"{what}: {status}")
    if bar.disable and status:
        say(f"{what}: {status}")


# --- All of it ------------------------------------------------------------------------------------


def _start_worker() -> None:
    import cv2

    cv2.setNumThreads(1)
    end_with_parent(signal.SIGINT)


def _make_all(
    shards: list[Shard], work: pathlib.Path, settings: Settings, drop: bool, processes: int
) -> Iterator[tuple[Shard, Report]]:
    """Makes the shards in `processes` processes, this one alone if 1; yields them as they end."""
    if processes == 1:
        yield from ((shard, make_shard(shard, work, settings, drop)) for shard in shards)
        return
    # Workers forked from a process of their own start at once and hold nothing of this one's, the
    # lock above all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "cv2", "tensorflow_datasets"])
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, initializer=_start_worker
    ) as pool:
        try:
            futures = {pool.submit(make_shard, s, work, settings, drop): s for s in shards}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise UserError(
                    "a worker was killed, perhaps for want of memory; run the same command again, "
                    "with fewer --processes"
                ) from None
            raise


def _shards(splits: dict[str, list[Item]]) -> list[Shard]:
    shards = []
    for split, items in splits.items():
        bounds = imagenet.shard_bounds(split, len(items))
        for index, (low, high) in enumerate(itertools.pairwise(bounds)):
            name = _file_name(split, index, len(bounds) - 1)
            shards.append(Shard(split, name, items[low:high]))
    return shards


def _file_name(split: str, index: int, shards: int) -> str:
    return f"{NAME}-{split}.array_record-{index:05d}-of-{shards:05d}"


def _check_space(shards: list[Shard], work: pathlib.Path, settings: Settings) -> None:
    """Raises UserError where the disk has no room for what is still to be written."""
    left = [shard for shard in shards if not (work / "data" / shard.name).exists()]
    lengths = [item.length for shard in left for item in shard.items]
    needed = sum(lengths) + RECORD_BYTES * len(lengths)
    if settings.size != "original":
        pixels = len(lengths) * int(settings.size) ** 2 * 4 / 3
        needed = min(needed, round(pixels * BYTES_PER_PIXEL))
    if needed > (free := shutil.disk_usage(work).free):
        raise UserError(
            f"{work} needs {needed / 1e9:,.1f} GB and its disk has {free / 1e9:,.1f} GB left; make "
            "room, choose another --data_dir, or a smaller --size"
        )


def _link(source: pathlib.Path, target: pathlib.Path, work: pathlib.Path) -> None:
    """A second name for a file, or a copy of it where the file system has no such thing."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:
        copy = work / "unfinished" / target.name
        shutil.copyfile(source, copy)
        os.replace(copy, target)


def _finish(
    work: pathlib.Path, reports: dict[str, Report], shards: list[Shard], settings: Settings
) -> None:
    """Adds `minival`, the metadata and the list of repaired images to the shards."""
    import tensorflow_datasets as tfds

    by_split = {
        split: [reports[shard.name] for shard in shards if shard.split == split]
        for split in (TRAIN, VALIDATION)
    }
    count = len(by_split[TRAIN])
    held = imagenet.minival_shards(count)
    by_split[MINIVAL] = by_split[TRAIN][:held]
    for index in range(held):
        source, target = _file_name(TRAIN, index, count), _file_name(MINIVAL, index, held)
        _link(work / "data" / source, work / "data" / target, work)
    tfds.folder_dataset.write_metadata(
        data_dir=work / "data",
        features=features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report.images for report in found],
                num_bytes=sum(report.bytes for report in found),
            )
            for split, found in by_split.items()
        ],
        version=VERSION,
        check_data=False,  # Would need TensorFlow.
        description=(
            f"ImageNet (ILSVRC 2012), size {settings.size}"
            + (f", quality {settings.quality}" if settings.size != "original" else "")
            + ", with restart markers" * settings.restart_markers
            + f"; {MINIVAL} is the first {held} of {count} shards of {TRAIN}."
        ),
        homepage="https://image-net.org/",
        supervised_keys=("image", "label"),
    )
    with open(work / "data" / "repaired.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("split", "file_name", "done", "found"))
        for shard in shards:
            for done in ("repaired", "dropped"):
                for name, found in getattr(reports[shard.name], done):
                    writer.writerow((shard.split, name, done, found))


def prepare(
    source: pathlib.Path,
    data_dir: pathlib.Path,
    settings: Settings,
    drop: bool = False,
    subset: bool = False,
    processes: int = 1,
) -> list[tuple[Shard, Report]]:
    """Prepares ImageNet in data_dir/imagenet2012/5.1.0, or goes on with it.

    Args:
      source: what inputs.open_input knows.
      data_dir: of TFDS.
      settings: what is to be done to the images.
      drop: leave damaged images out, where otherwise they are an error.
      subset: the input is a part of ImageNet: counts and checksums are not compared.
      processes: how many work at it.

    Returns:
      The shards of training and validation, in order, and what they hold.

    Raises:
      UserError: the input is not ImageNet, or not whole; the data set is there already, or is being
        prepared, or was begun otherwise; the disk is too small or can't be written to.
    """
    final, work = places(data_dir)
    there = UserError(
        f"{final} is there already, and is never overwritten; remove it, or choose another "
        "--data_dir"
    )
    if final.exists() and not work.exists():
        raise there
    try:
        with _locked(work), heeding_ctrl_c() as check:
            if final.exists():  # Killed, or finished by another process, since it got its name.
                shutil.rmtree(work)
                raise there
            made = _prepare(source, work, settings, drop, subset, processes, check)
            os.rename(work / "data", final)
            shutil.rmtree(work)
    except OSError as error:
        raise UserError(f"{error.filename or work}: {error.strerror}") from None
    return made


def _prepare(
    source: pathlib.Path,
    work: pathlib.Path,
    settings: Settings,
    drop: bool,
    subset: bool,
    processes: int,
    check: Callable[[], None],
) -> list[tuple[Shard, Report]]:
    found = _open_input(source)
    splits = {s: imagenet.ordered(s, found.splits[s]) for s in (TRAIN, VALIDATION)}
    for split, items in splits.items():
        imagenet.check_names(split, items)
        if not subset:
            imagenet.check(split, items)
        classes = len({item.label for item in items})
        say(f"{split}: {len(items):,} images of {classes} classes, from {found.kind}")
    shards = _shards(splits)
    _check_space(shards, work, settings)
    command = f"{TOOL} --from={shlex.quote(str(source.resolve()))} --data_dir="
    command += shlex.quote(str(work.parent.parent.resolve()))
    command += f" --size={settings.size} --quality={settings.quality}" + " --subset" * subset
    command += " --restart_markers" * settings.restart_markers
    command += " --on_corrupt=drop" * drop
    _agree(work, {**dataclasses.asdict(settings), "images": _fingerprint(splits)}, command)
    if not subset:
        _check_archives(found.archives, work)
    shutil.rmtree(work / "unfinished", ignore_errors=True)
    for name in ("data", "reports", "unfinished"):
        (work / name).mkdir(exist_ok=True)
    kept = [shard for shard in shards if (work / "data" / shard.name).exists()]
    reports = {shard.name: make_shard(shard, work, settings, drop) for shard in kept}
    if kept:
        say(f"going on: {len(kept)} of {len(shards)} shards are there")
    left = [shard for shard in shards if shard.name not in reports]
    images = sum(len(shard.items) for shard in left)
    with contextlib.closing(_make_all(left, work, settings, drop, processes)) as made:
        for shard, report in watched(
            made, "preparing", images, lambda p: len(p[0].items), "images"
        ):
            check()
            reports[shard.name] = report
    _finish(work, reports, shards, settings)
    return [(shard, reports[shard.name]) for shard in shards]
