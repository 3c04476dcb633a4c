"""Batches as a pure function of the step.

Position p of the endless training stream holds record `permutation(seed, epoch)[p mod n]` of epoch
`p // n`. Each record occurs once per epoch, in a new order every epoch. The global batch at step t
has the positions [t * B, (t + 1) * B), and each process has an equal, contiguous share of them. The
randomness of an image follows from the seed and its position. So the stream is the same for any
number of processes, and a run that resumes at step t reads the batches from t on.

Threads share the work on a batch in chunks, which bounds the memory for reading ahead.
"""

import concurrent.futures
import contextlib
import functools
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from effnet_jax.data import augment, crop
from effnet_jax.data.crop import Box
from effnet_jax.data.decode import decode_box, decode_image
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.data.resizing import resize
from effnet_jax.data.sources import Record, Source
from effnet_jax.errors import UserError
from effnet_jax.run.quiet import log_handlers_kept
from effnet_jax.run.workers import end_with_parent, held_back

with log_handlers_kept():
    import grain

Batch = dict[str, np.ndarray]
# (position, out) -> label, mask; writes the image into `out`, uint8 [size, size, 3].
Load = Callable[[int, np.ndarray], tuple[int | np.ndarray, bool]]

CHUNK = 64  # Most images that one thread makes in a row.


def read(source: Source, index: int) -> Record:
    """A record whose label is checked; raises ValueError or OSError if it is damaged."""
    record = source[index]
    label, classes = record["label"], len(source.classes)
    # Sets of labels are padded with -1.
    lowest, highest = (label,) * 2 if isinstance(label, int) else (label.min() + 1, label.max())
    if lowest < 0 or highest >= classes:
        raise ValueError(f"label {label} is out of range; there are {classes} classes")
    return record


@contextlib.contextmanager
def error_for(source: Source, index: int) -> Iterator[None]:
    """Turns an error about a record that can't be read into a UserError that names the record."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {source.describe(index)}: {error}") from None


def check_images(source: Source, count: int, threads: int) -> None:
    """Decodes `count` evenly spaced images; raises a UserError that names a damaged one."""

    def check(index: int) -> None:
        with error_for(source, index):
            decode_image(read(source, index)["image"])

    indices = np.unique(np.linspace(0, len(source) - 1, min(count, len(source)), dtype=int))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(check, indices.tolist()))


class TrainImages:
    """A `Load` that makes training images; `config` is the whole config."""

    def __init__(self, source: Source, config: ConfigDict):
        self._source, self._seed = source, config.seed
        self._preprocess, self._augment = config.preprocess, config.augment
        self._skips, self._exif = config.data.on_corrupt == "skip", config.data.exif
        self._policy = augment.build_policy(config.augment)
        self._order = grain.MapDataset.range(len(source)).shuffle(seed=config.seed).repeat()

    def index(self, position: int) -> int:
        """The index of the record at a position."""
        return int(self._order[position])

    def random(self, position: int) -> np.random.Generator:
        """The random generator for the image at a position."""
        return np.random.Generator(np.random.Philox(key=(self._seed, position)))

    def __call__(self, position: int, out: np.ndarray) -> tuple[int, bool]:
        index, rng = self.index(position), self.random(position)
        with error_for(self._source, index):
            record = read(self._source, index)  # Wrong labels and lost disks are never skipped.
            try:
                choose = functools.partial(self.box, len(out), rng)
                image = decode_box(record["image"], choose, self._exif)
            except ValueError as error:
                if not self._skips:
                    raise
                where = self._source.describe(index)
                print(f"skipped: cannot read {where}: {error}", file=sys.stderr, flush=True)
                out[:] = 0
                return 0, False
        self.distort(image, rng, out)
        return record["label"], True

    def box(self, size: int, rng: np.random.Generator, height: int, width: int) -> Box:
        """A random crop box in an image [height, width], to be resized to [size, size].

        If no random crop fits, or if it is the whole image, evaluation's crop is returned, as in
        the reference's _decode_and_random_crop.
        """
        config = self._preprocess
        ranges = config.crop_area, config.crop_aspect
        limits = config.crop_min_covered, config.crop_attempts
        found = crop.random_box(height, width, *ranges, rng, *limits)
        if found and found[2:] != (height, width):
            return found
        return Preprocess.from_config(config, size).box(height, width)

    def distort(self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray) -> None:
        """Resizes the crop `image`, flips and augments it, and writes it to `out`."""
        truncate = self._policy is not None and self._augment.rounding == "truncate"
        image = resize(image, out.shape[:2], self._preprocess.interpolation, truncate)
        if self._preprocess.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1)
        if self._preprocess.flip_vertical and rng.random() < 0.5:
            image = cv2.flip(image, 0)
        if self._policy:
            image = self._policy(image, rng)
        if self._augment.cutout > 0:
            image = augment.cutout_noise(image, self._augment.cutout, rng)
        if self._augment.erase_probability > 0:
            image = augment.erase(image, self._augment, self._preprocess.mean, rng)
        out[:] = image


def concatenate(chunks: Sequence[Batch]) -> Batch:
    """Joins chunks to a batch; images that are in one array already are not copied."""
    batch = {key: [chunk[key] for chunk in chunks] for key in chunks[0]}
    images = batch.pop("image")
    whole = images[0].base  # For images from worker processes this is a buffer, not an array.
    together = isinstance(whole, np.ndarray) and len(whole) == sum(map(len, images))
    if not together or any(image.base is not whole for image in images):
        whole = np.concatenate(images)
    return {"image": whole, **{key: np.concatenate(parts) for key, parts in batch.items()}}


class Batches:
    """This process's share of every batch: `batches[step]`, or `batches.read_ahead(...)`.

    A share of n images has image uint8 [n, resolution, resolution, 3], label int32 [n] and mask
    float32 [n]; label is [n, MOST_LABELS] if the source has sets of labels. `batch_size` is the
    global one, a multiple of `processes`; `length` is the number of batches, or None for endless.
    """

    def __init__(
        self,
        load: Load,
        resolution: int,
        batch_size: int,
        length: int | None,
        process: int = 0,
        processes: int = 1,
    ):
        self._load, self._resolution, self._length = load, resolution, length
        self._global, self._local, self._process = batch_size, batch_size // processes, process

    def __len__(self) -> int:
        return self._length  # For endless batches this raises TypeError.

    def _empty(self, count: int) -> np.ndarray:
        return np.empty((count, self._resolution, self._resolution, 3), np.uint8)

    def _make(self, chunk: int, number: int, images: np.ndarray | None = None) -> Batch:
        """Makes chunk `number` of this process, `chunk` images, in this thread.

        The images are written to `images`, or to a new array if it is None.
        """
        cv2.setNumThreads(0)  # Not at import, because it applies to the whole process.
        images = self._empty(chunk) if images is None else images
        step, part = divmod(number, self._local // chunk)
        first = step * self._global + self._process * self._local + part * chunk
        loaded = map(self._load, range(first, first + chunk), images)
        labels, masks = zip(*loaded, strict=True)
        label, mask = np.array(labels, np.int32), np.array(masks, np.float32)
        return {"image": images, "label": label, "mask": mask}

    def _make_in_place(self, chunk: int) -> Callable[[int], Batch]:
        """A `_make` that writes images to their place in the batch, so that none are copied."""
        batches, lock = weakref.WeakValueDictionary(), threading.Lock()  # Images by step.

        def make(number: int) -> Batch:
            step, part = divmod(number, self._local // chunk)
            with lock:  # The chunks of a step keep its images alive.
                images = batches.setdefault(step, self._empty(self._local))
            return self._make(chunk, number, images[part * chunk :][:chunk])

        return make

    def __getitem__(self, step: int) -> Batch:
        return self._make(self._local, step)

    def read_ahead(
        self, config: ConfigDict, start: int = 0, stop: int | None = None, workers: int = 0
    ) -> Iterator[Batch]:
        """Iterates over `self[start:stop]` in order, read ahead by threads or worker processes.

        `config`, which is `config.data`, limits the images that are ready or in work. In addition,
        one batch is put together and one waits. Each of `workers` processes has `config.threads`
        threads; with 0 workers this process has them.
        """
        stop = self._length if stop is None else stop
        most = int(config.prefetch_gib * 2**30 / (self._resolution**2 * 3))
        images = min(config.prefetch_batches * self._local, most)
        # Each thread gets at least two chunks. A chunk costs as much as a third of an image.
        largest = min(CHUNK, images // (2 * config.threads * max(1, workers)))
        chunk = max(n for n in range(1, max(1, largest) + 1) if self._local % n == 0)
        per_batch = self._local // chunk
        ahead = max(1, images // chunk // max(1, workers))
        options = grain.ReadOptions(min(config.threads, ahead), ahead)
        last = 2**62 if stop is None else stop * per_batch
        numbers = grain.MapDataset.range(start * per_batch, last)
        make = functools.partial(self._make, chunk) if workers else self._make_in_place(chunk)
        chunks = numbers.map(make).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain reads a flag; a notebook parses none.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(workers)
            chunks = chunks.mp_prefetch(options, lambda index, count: end_with_parent())
        batches = chunks.batch(per_batch, batch_fn=concatenate)
        made = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))
        with held_back(signal.SIGINT, signal.SIGTERM):  # A job's processes all get them at once.
            made.start_prefetch()  # Starts a thread, which starts the workers.
        try:
            yield from made
        finally:  # Threads and workers end here if the caller stops early.
            made.close()


def train_batches(
    source: Source, config: ConfigDict, resolution: int, process: int = 0, processes: int = 1
) -> Batches:
    """Endless training batches of `config.batch_size` images, in the order of `config.seed`."""
    load = TrainImages(source, config)
    return Batches(load, resolution, config.batch_size, None, process, processes)


def eval_batches(
    source: Source, config: ConfigDict, resolution: int, process: int = 0, processes: int = 1
) -> Batches:
    """Evaluation batches of `config.eval_batch_size` images: each record once, in order.

    The last batch is padded with black images whose mask is 0, so that all processes run the same
    number of steps.
    """
    preprocess = Preprocess.from_config(config.preprocess, resolution)

    def load(position: int, out: np.ndarray) -> tuple[int | np.ndarray, bool]:
        if position >= len(source):
            out[:] = 0
            return read(source, 0)["label"], False  # Only the label's shape matters.
        with error_for(source, position):
            record = read(source, position)
            out[:] = preprocess.pixels(record["image"], config.data.exif)
        return record["label"], True

    length = -(-len(source) // config.eval_batch_size)
    return Batches(load, resolution, config.eval_batch_size, length, process, processes)
