"""Order, coverage and exactness of the batches."""

import collections
import concurrent.futures
import contextlib
import io
import itertools
import signal
import threading
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from effnet_jax import config as default
from effnet_jax import parallel
from effnet_jax.data import folders, pipeline, sources
from effnet_jax.errors import UserError


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Numbers:
    """A source whose images identify their record: all pixels are its index."""

    classes = ("even", "odd")

    def __init__(self, count: int):
        self._images = [encode(np.full((8, 8, 3), index, np.uint8)) for index in range(count)]

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return {"image": self._images[index], "label": index % 2}

    def describe(self, index):
        return f"number {index}"


def record_of(batch) -> list[int]:
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_each_record_once_an_epoch_on_any_number_of_processes(tiny, processes):
    source, batch = Numbers(100), 8  # 8 does not divide 100, so batches cross the ends of epochs.
    tiny.seed, tiny.batch_size = 3, batch
    datasets = [
        pipeline.train_batches(source, tiny, 8, process, processes) for process in range(processes)
    ]
    steps = [[record_of(dataset[step]) for dataset in datasets] for step in range(25)]
    assert all(len(part) == batch // processes for parts in steps for part in parts)
    stream = list(itertools.chain(*(itertools.chain(*parts) for parts in steps)))
    first, second = stream[:100], stream[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_same_batches_with_the_same_augmentations_on_any_number_of_processes(tiny, processes):
    source = sources.open_source(tiny.data, "train")
    tiny.batch_size = 16
    tiny.augment.policy = "autoaugment"
    make = lambda *place: pipeline.train_batches(source, tiny, 16, *place)  # noqa: E731
    whole, parts = make(), [make(process, processes) for process in range(processes)]
    for step in (0, 1, 89, 90, 1000):  # 89 crosses the end of the first epoch.
        for key in ("image", "label", "mask"):
            together = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(together, whole[step][key])


def test_a_batch_depends_on_step_and_seed_alone(tiny):
    source = sources.open_source(tiny.data, "train")
    tiny.batch_size = 16

    def make(seed):
        tiny.seed = seed
        return pipeline.train_batches(source, tiny.copy_and_resolve_references(), 16)

    steady = make(0).read_ahead(tiny.data, 0, 8)
    late = make(0).read_ahead(tiny.data, 5, 8)
    skipped = list(itertools.islice(steady, 5, None))
    for one, other in zip(skipped, late, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert not np.array_equal(make(0)[0]["label"], make(1)[0]["label"])
    assert not np.array_equal(make(0)[0]["image"], make(0)[1]["image"])


def test_augmentations_differ_from_epoch_to_epoch(tiny):
    source = sources.open_source(tiny.data, "train")

    class One:
        classes = source.classes

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return source[0]

    tiny.batch_size = 16
    batch = pipeline.train_batches(One(), tiny, 16)[0]
    assert len({image.tobytes() for image in batch["image"]}) > 8


@pytest.mark.parametrize(("key", "last"), [("flip", (0, -1)), ("flip_vertical", (-1, 0))])
def test_flips_are_half_and_can_be_off(tiny, key, last):
    # An image that is brighter to the right, or to the bottom.
    ramp = np.tile(np.arange(8, dtype=np.uint8)[None, :, None] * 30, (8, 1, 3))
    ramp = ramp if key == "flip" else ramp.transpose(1, 0, 2)

    class Ramp(Numbers):
        def __init__(self):  # Many records, because shuffling takes longest for few.
            self._images = [encode(ramp)] * 1000

    for flip, low, high in ((True, 0.4, 0.6), (False, 0, 0)):
        tiny.preprocess[key] = flip
        tiny.batch_size = 400
        images = pipeline.train_batches(Ramp(), tiny, 8)[0]["image"]
        flipped = (images[:, 0, 0, 0] > images[:, *last, 0]).mean()
        assert low <= flipped <= high


def test_images_cross_as_uint8(tiny):
    source = sources.open_source(tiny.data, "train")
    tiny.batch_size = 4
    batch = pipeline.train_batches(source, tiny, 16)[0]
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (4, 16, 16, 3)),
        "label": ("int32", (4,)),
        "mask": ("float32", (4,)),
    }


@pytest.mark.parametrize(
    ("count", "batch", "processes"), [(100, 8, 1), (100, 8, 4), (5, 8, 2), (16, 8, 2)]
)
def test_evaluation_pads_and_drops_nothing(tiny, count, batch, processes):
    seen = collections.Counter()
    lengths = set()
    for process in range(processes):
        tiny.eval_batch_size = batch
        dataset = pipeline.eval_batches(Numbers(count), tiny, 8, process, processes)
        batches = list(dataset.read_ahead(tiny.data))
        lengths.add(len(batches))
        for part in batches:
            assert len(part["mask"]) == batch // processes
            kept = part["mask"] == 1
            seen.update(part["image"][kept, 0, 0, 0].tolist())
            assert not part["image"][~kept].any()
    assert seen == dict.fromkeys(range(count), 1)
    assert lengths == {-(-count // batch)}  # The same number of steps on every process.


def broken(count: int, bad: int) -> Numbers:
    """Numbers, with one image that can't be decoded."""
    source = Numbers(count)
    source._images[bad] = b"\xff\xd8broken"
    return source


def test_an_unreadable_record_is_named(tiny):
    tiny.batch_size = 8
    batches = pipeline.train_batches(broken(32, 7), tiny, 8)
    with pytest.raises(UserError, match="cannot read number 7"):
        list(batches.read_ahead(tiny.data, 0, 4))


def test_a_worker_process_makes_the_same_batches_and_names_an_unreadable_record(tiny, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(32)]
    for index, path in enumerate(paths):
        path.write_bytes(encode(np.full((8, 8, 3), index, np.uint8)))
    # A source that a worker can unpickle without importing this module and its imports.
    source = folders.FolderSource(("one",), [(str(path), 0) for path in paths])
    tiny.batch_size = 8  # One chunk.
    batches = pipeline.train_batches(source, tiny, 8)
    bad = record_of(batches[2])[3]
    paths[bad].write_bytes(b"\xff\xd8broken")
    ahead = batches.read_ahead(tiny.data, 0, 4, workers=1)
    for step in range(2):
        made = next(ahead)
        for key, value in batches[step].items():
            np.testing.assert_array_equal(made[key], value)
    with pytest.raises(UserError, match=f"cannot read {paths[bad]}"):
        list(ahead)


def test_an_unreadable_record_is_skipped_where_asked(tiny, capsys):
    tiny.batch_size, tiny.data.on_corrupt = 8, "skip"
    batches = list(pipeline.train_batches(broken(32, 7), tiny, 8).read_ahead(tiny.data, 0, 8))
    masks = np.concatenate([batch["mask"] for batch in batches])
    seen = np.concatenate([record_of(batch) for batch in batches])
    assert (masks == 0).sum() == 2  # Once in each of two epochs.
    assert sorted(seen[masks == 1]) == sorted(2 * [*range(7), *range(8, 32)])
    assert capsys.readouterr().err.count("skipped: cannot read number 7") == 2


def test_a_wrong_label_is_never_skipped(tiny):
    class Odd(Numbers):
        classes = ("even",)

    tiny.batch_size, tiny.data.on_corrupt = 8, "skip"
    with pytest.raises(UserError, match="out of range"):
        list(pipeline.train_batches(Odd(32), tiny, 8).read_ahead(tiny.data, 0, 4))


def test_evaluation_never_skips(tiny):
    tiny.data.on_corrupt = "skip"
    with pytest.raises(UserError, match="cannot read number 7"):
        list(pipeline.eval_batches(broken(32, 7), tiny, 8).read_ahead(tiny.data))


def test_a_label_out_of_range_is_named(tiny):
    class Odd(Numbers):
        classes = ("even",)

    with pytest.raises(UserError, match=r"number 1.* label 1 .* 1 classes"):
        pipeline.eval_batches(Odd(2), tiny, 8)[0]


@pytest.mark.parametrize("size", [1, 7, 16, 48, 101])
def test_chunks_make_whole_batches(tiny, size):
    tiny.batch_size = size
    batches = pipeline.train_batches(Numbers(200), tiny, 8)
    for step, ahead in enumerate(batches.read_ahead(tiny.data, 2, 5)):
        assert len(ahead["label"]) == size
        for key, value in batches[2 + step].items():
            np.testing.assert_array_equal(ahead[key], value)


def test_worker_processes_make_the_same_batches_whatever_signals_come(tiny):
    source = sources.open_source(tiny.data, "train")
    tiny.batch_size = 24  # Two chunks.
    batches = pipeline.train_batches(source, tiny, 16)
    ended, sent = threading.Event(), []

    def send() -> None:  # As soon as there is a worker.
        while not ended.wait(0.02):
            for worker in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "spawn_main" in " ".join(worker.cmdline()):
                        worker.send_signal((signal.SIGINT, signal.SIGTERM)[len(sent) % 2])
                        sent.append(worker.pid)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            for step, ahead in enumerate(batches.read_ahead(tiny.data, 0, 8, workers=2)):
                for key, value in batches[step].items():
                    np.testing.assert_array_equal(ahead[key], value)
        finally:
            ended.set()
        sending.result()
    assert step == 7
    assert len(set(sent)) >= 2


def test_batches_that_are_held_keep_their_images(tiny):
    source = sources.open_source(tiny.data, "train")
    tiny.batch_size = 16
    batches = pipeline.train_batches(source, tiny, 16)
    mesh = parallel.data_mesh()
    held = [
        (step, batch["image"][2:])
        for step, batch in enumerate(batches.read_ahead(tiny.data, 0, 24))
        if step % 3
    ]
    for step, images in held:
        np.testing.assert_array_equal(images, batches[step]["image"][2:])
    on_device = []
    for batch in batches.read_ahead(tiny.data, 0, 24):
        on_device.append(parallel.put_batch(batch, mesh)["image"])  # It may share the memory.
        del batch
    for step, images in enumerate(on_device):
        np.testing.assert_array_equal(images, batches[step]["image"])


def test_memory_bounds_what_is_read_ahead(tiny):
    """Once the first batch is taken, no more images are made than the bound has room for."""
    made = []

    class Counting(Numbers):
        def __getitem__(self, index):
            made.append(index)
            return super().__getitem__(index)

    tiny.batch_size, size = 256, 64
    tiny.data.prefetch_gib = 0.01
    room = int(0.01 * 2**30 / (size * size * 3))
    batches = pipeline.train_batches(Counting(100), tiny, size).read_ahead(tiny.data, 0, 8)
    next(batches)
    end = time.monotonic() + 60
    while len(made) < room:  # Until everything that fits is read ahead.
        assert time.monotonic() < end, len(made)
        time.sleep(0.001)
    # The images in the bound, the batch taken, the one that waits, and the one being put together.
    assert 256 < len(made) <= room + 3 * 256
    for step, _ in enumerate(batches, 2):
        assert len(made) <= room + (step + 2) * 256
    assert len(made) == 8 * 256


def test_pixels_are_truncated_before_a_policy_alone(tiny):
    # preprocess_for_train of both references: tf.cast(..., tf.uint8), if augment_name is set.
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, axis=-1)
    tiny.preprocess.interpolation, tiny.preprocess.flip = "bilinear", False
    tiny.augment.randaugment_layers = 0
    exact = (image[::2, ::2] + image[1::2, 1::2]) / 2  # Every value ends in .5.
    for policy, rounding, expected in (
        ("none", "truncate", np.rint(exact + 0.1)),
        ("randaugment", "nearest", np.rint(exact + 0.1)),
        ("randaugment", "truncate", np.floor(exact)),
    ):
        tiny.augment.policy, tiny.augment.rounding = policy, rounding
        out = np.empty((4, 4, 3), np.uint8)
        pipeline.TrainImages(Numbers(1), tiny).distort(image, np.random.default_rng(0), out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("interpolation", "bicubik", "bicubic"),
        ("crop_area", (0.5, 0.2), "crop_area"),
        ("crop_area", (0.5, 1.2), "crop_area"),
        ("crop_aspect", (0.0, 1.0), "crop_aspect"),
        ("mean", (0.5, 0.5), "three numbers"),
        ("std", (0.5, 0.5, 0.0), "above 0"),
    ],
)
def test_impossible_preprocessing_is_refused(tiny, key, value, message):
    tiny.preprocess[key] = value
    with pytest.raises(UserError, match=message):
        default.validate(tiny)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_training_and_evaluation_heed_orientation_alike(tiny, exif):
    """The left half of the stored image is white; of the upright image it is the top half."""
    source, pixels, turn = Numbers(4), np.zeros((8, 8, 3), np.uint8), Image.Exif()
    pixels[:, :4], turn[274] = 255, 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=turn)
    source._images = [buffer.getvalue()] * 4
    tiny.batch_size = tiny.eval_batch_size = 4
    tiny.preprocess.update(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), flip=False)
    tiny.preprocess.crop_padding, tiny.data.exif = 0, exif
    for batches in (
        pipeline.train_batches(source, tiny, 8),
        pipeline.eval_batches(source, tiny, 8),
    ):
        image = batches[0]["image"][0]
        white = image[:4] if exif == "apply" else image[:, :4]
        assert white.min() == 255 and image.sum() == white.sum()
