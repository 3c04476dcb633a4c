"""Writes ImageNet as a TFDS data set in ArrayRecord, without TensorFlow.

Everything is made in DATA_DIR/imagenet2012/5.1.0.incomplete, which TFDS ignores:

  lock           held by the process that prepares
  state.json     the settings, a fingerprint of the images, and the tars whose checksum is right
  reports/       for each shard its images, bytes, repaired and dropped files
  unfinished/    shards being written
  data/          whole shards, then the metadata; in the end it becomes 5.1.0

A shard follows from the settings and its images alone and gets its name when it is whole. So
preparation can be killed at any point: the same command continues, and ends in the same bytes.
"""

import concurrent.futures
import contextlib
import csv
import hashlib
import itertools
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.imagenet import dataset as imagenet
from effnet_jax.imagenet import inputs
from effnet_jax.imagenet.dataset import MINIVAL, NAME, TRAIN, VALIDATION, VERSION, Item
from effnet_jax.imagenet.inputs import say
from effnet_jax.imagenet.shards import Report, Settings, Shard, make_shard
from effnet_jax.run import files
from effnet_jax.run.workers import end_with_parent, held_back

Made = list[tuple[Shard, Report]]
# Generous estimates, to see beforehand whether the disk is large enough.
BYTES_PER_PIXEL = 0.5
RECORD_BYTES = 200  # Names, label and index of a record.
SECONDS = 10  # Between two lines of progress.


def places(data_dir: Path) -> tuple[Path, Path]:
    """The folder of the finished data set, and the one where it is made."""
    final = data_dir / NAME / VERSION
    return final, final.with_name(f"{VERSION}.incomplete")


def prepare(
    source: Path,
    data_dir: Path,
    settings: Settings,
    subset: bool = False,
    processes: int = 1,
    minival: Path | None = None,
) -> Made:
    """Prepares ImageNet in data_dir/imagenet2012/5.1.0, or continues to.

    `source` has one of the forms that `inputs.open_input` knows. With `subset` it may be
    incomplete: counts and checksums are not compared. `minival` is a file of names for
    `dataset.read_minival`.

    Returns the shards of training and validation, in order, with their reports. Raises UserError if
    the input is not ImageNet; the data set exists, is being prepared, or was begun with other
    settings; or the disk is too small. Raises OSError if it can't be written to.
    """
    final, work = places(data_dir)
    exists = UserError(
        f"{final} already exists and is never overwritten; remove it, or choose another --data_dir"
    )
    if final.exists() and not work.exists():
        raise exists
    work.mkdir(parents=True, exist_ok=True)
    lock = files.Lock(work / "lock", "preparation", "choose another --data_dir")
    with lock, heeding_ctrl_c() as check:
        if final.exists():  # An earlier process was killed, or ended a moment ago.
            shutil.rmtree(work)
            raise exists
        try:
            shards = _begin(source, work, settings, subset, minival)
        finally:
            if not (work / "state.json").exists():
                shutil.rmtree(work)
        made = _make(shards, work, settings, processes, check)
        _finish(work, made, settings)
        os.rename(work / "data", final)
        shutil.rmtree(work)
    return made


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[Callable[[], None]]:
    """Yields a function that raises KeyboardInterrupt if that of an earlier Ctrl-C was lost.

    Python discards exceptions in callbacks of the garbage collector, such as JAX's.
    """
    lost, before = threading.Event(), sys.unraisablehook

    def note(discarded: Any) -> None:
        if isinstance(discarded.exc_value, KeyboardInterrupt):
            lost.set()
        else:
            before(discarded)

    def check() -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    sys.unraisablehook = note
    try:
        yield check
    finally:
        sys.unraisablehook = before


def _begin(
    source: Path, work: Path, settings: Settings, subset: bool, minival: Path | None
) -> list[Shard]:
    """Checks the input against ImageNet, the disk and what was begun; returns all shards."""
    listed = None if minival is None else imagenet.read_minival(minival)
    found, shards = inputs.open_input(source), []
    for split in (TRAIN, VALIDATION):
        items = imagenet.ordered(split, found.splits[split])
        imagenet.check(split, items, subset)
        classes = len({item.label for item in items})
        say(f"{split}: {len(items):,} images of {classes} classes, from {found.kind}")
        held = None
        if split == TRAIN and listed is not None:
            items, held = imagenet.hold_out(items, listed, subset)
            say(f"{MINIVAL}: {held:,} images of {len(listed):,} that {minival} lists")
        shards += _shards(split, items, held)
    _check_space(shards, work, settings)
    source, data_dir = (shlex.quote(str(path.resolve())) for path in (source, work.parents[1]))
    command = (
        f"effnet-jax prepare_imagenet --from={source} --data_dir={data_dir} --size={settings.size} "
        f"--quality={settings.quality}{' --subset' * subset}{' --on_corrupt=drop' * settings.drop}"
    )
    if minival is not None:
        command += f" --minival={shlex.quote(str(minival.resolve()))}"
    wanted = {"size": settings.size, "quality": settings.quality, "images": _fingerprint(shards)}
    _agree(work, wanted, command)
    if not subset:
        _check_archives(found.archives, work)
    return shards


def _make(
    shards: list[Shard], work: Path, settings: Settings, processes: int, check: Callable[[], None]
) -> Made:
    """Makes the shards that are missing; `check` raises KeyboardInterrupt after a Ctrl-C."""
    shutil.rmtree(work / "unfinished", ignore_errors=True)
    for name in ("data", "reports", "unfinished"):
        (work / name).mkdir(exist_ok=True)
    kept = (shard for shard in shards if (work / "data" / shard.name).exists())
    reports = {shard.name: make_shard(shard, work, settings) for shard in kept}
    if reports:
        say(f"going on: {len(reports)} of {len(shards)} shards are there")
    left = [shard for shard in shards if shard.name not in reports]
    start = said = time.monotonic()
    with contextlib.closing(_make_all(left, work, settings, processes)) as made:
        for done, (shard, report) in enumerate(made, 1):
            check()
            reports[shard.name] = report
            if time.monotonic() - said > SECONDS or done == len(left):
                said = time.monotonic()
                minutes = (said - start) / done * (len(left) - done) / 60
                say(f"{done:,} of {len(left):,} shards, {minutes:,.0f} minutes left")
    return [(shard, reports[shard.name]) for shard in shards]


def _fingerprint(shards: list[Shard]) -> str:
    """A hash of the images' names, labels and lengths; their places may change."""
    digest = hashlib.sha256()
    for shard in shards:
        for item in shard.items:
            digest.update(f"{shard.name} {item.file_name} {item.label} {item.length}\n".encode())
    return digest.hexdigest()


def _agree(work: Path, wanted: dict, command: str) -> None:
    """Writes what is prepared; raises UserError if something else was begun."""
    path = work / "state.json"
    if not path.exists():
        files.write_json(path, {**wanted, "command": command, "archives": {}})
    state = files.read_json(path)
    differing = [key for key in wanted if state[key] != wanted[key]]
    if differing:
        begun = (
            "other images or another --minival" if key == "images" else f"--{key}={state[key]}"
            for key in differing
        )
        raise UserError(
            f"{work} was begun with {', '.join(begun)}. Go on with the command that began it:\n"
            f"  {state['command']}\nor choose another --data_dir, or remove that directory"
        )


def _check_archives(archives: dict[str, Path], work: Path) -> None:
    """Raises UserError if a tar is not the official one; remembers that it is."""
    state = files.read_json(work / "state.json")
    for split, path in archives.items():
        stat = path.stat()
        now = [str(path.resolve()), stat.st_size, stat.st_mtime_ns]
        if state["archives"].get(split) == now:
            continue
        expected = imagenet.ARCHIVES[split]
        if (found := inputs.md5(path)) != expected.md5:
            if not (work / "data").exists():
                (work / "state.json").unlink()  # Another tar may be begun with.
            raise UserError(
                f"{path} has the MD5 {found} and {stat.st_size:,} bytes; ImageNet's has "
                f"{expected.md5} and {expected.size:,}. Download it again, or accept an incomplete "
                "ImageNet with --subset"
            )
        state["archives"][split] = now
        files.write_json(work / "state.json", state)


def _check_space(shards: list[Shard], work: Path, settings: Settings) -> None:
    """Raises UserError if the disk has no room for what is still to be written."""
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


def _file_name(split: str, index: int, shards: int) -> str:
    return f"{NAME}-{split}.array_record-{index:05d}-of-{shards:05d}"


def _shards(split: str, items: list[Item], held: int | None) -> list[Shard]:
    bounds = imagenet.shard_bounds(split, len(items), held)
    return [
        Shard(split, _file_name(split, index, len(bounds) - 1), items[low:high])
        for index, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


def _make_all(
    shards: list[Shard], work: Path, settings: Settings, processes: int
) -> Iterator[tuple[Shard, Report]]:
    """Makes the shards in `processes` processes, or in this one if 1; yields them as they end."""
    if processes == 1:
        yield from ((shard, make_shard(shard, work, settings)) for shard in shards)
        return
    # Workers are forked from a process that has the modules imported, and nothing open.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([make_shard.__module__, "tensorflow_datasets"])
    executor = concurrent.futures.ProcessPoolExecutor
    with executor(processes, context, initializer=end_with_parent) as pool:
        try:
            # Ctrl-C goes to all processes; this one ends the others.
            with held_back(signal.SIGINT):
                futures = {pool.submit(make_shard, s, work, settings): s for s in shards}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                raise UserError(
                    "a worker was killed, perhaps for lack of memory; run the same command again, "
                    "with fewer --processes"
                ) from None
            raise


def by_split(made: Made) -> dict[str, Made]:
    """The shards of each split, `minival` among them."""
    splits = {s: [pair for pair in made if pair[0].split == s] for s in (TRAIN, VALIDATION)}
    held = imagenet.minival_shards(len(splits[TRAIN]))
    return splits | {MINIVAL: splits[TRAIN][:held]}


def odd_images(made: Made) -> Iterator[tuple[str, str, str, str]]:
    """Split and file name of the images that were repaired or dropped, which of them, and why."""
    for shard, report in made:
        for done in ("repaired", "dropped"):
            yield from ((shard.split, name, done, why) for name, why in getattr(report, done))


def _finish(work: Path, made: Made, settings: Settings) -> None:
    """Adds `minival`, the metadata and the list of odd images to the shards."""
    import tensorflow_datasets as tfds

    splits, data = by_split(made), work / "data"
    count, held = len(splits[TRAIN]), len(splits[MINIVAL])
    for index, (shard, _) in enumerate(splits[MINIVAL]):
        target = data / _file_name(MINIVAL, index, held)
        target.unlink(missing_ok=True)
        try:
            os.link(data / shard.name, target)
        except OSError:  # This file system has no hard links.
            shutil.copyfile(data / shard.name, target)
    quality = "" if settings.size == "original" else f", quality {settings.quality}"
    tfds.folder_dataset.write_metadata(
        data_dir=data,
        features=imagenet.features(),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report.images for _, report in pairs],
                num_bytes=sum(report.bytes for _, report in pairs),
            )
            for split, pairs in splits.items()
        ],
        version=VERSION,
        check_data=False,  # Would need TensorFlow.
        description=(
            f"ImageNet (ILSVRC 2012), size {settings.size}{quality}; {MINIVAL} is the first {held} "
            f"of {count} shards of {TRAIN}."
        ),
        homepage="https://image-net.org/",
        supervised_keys=("image", "label"),
    )
    with open(data / "repaired.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("split", "file_name", "done", "found"))
        writer.writerows(odd_images(made))
