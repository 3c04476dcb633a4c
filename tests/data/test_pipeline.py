"""Order, coverage and exactness of the batches."""

import collections
import itertools

import numpy as np
import pytest

from effnet_jax.data import pipeline, sources
from effnet_jax.errors import UserError


class Numbers:
    """A source whose image says which record it is: all pixels are the index."""

    classes = ("even", "odd")

    def __init__(self, count: int):
        self._images = [self._encode(index) for index in range(count)]

    @staticmethod
    def _encode(index: int) -> bytes:
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        return {"image": self._images[index], "label": index % 2}

    def describe(self, index):
        return f"number {index}"


def record_of(batch) -> list[int]:
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_each_record_once_an_epoch_on_any_number_of_hosts(tiny, hosts):
    source, batch = Numbers(100), 8  # 100 / 8 is not whole: batches cross the ends of epochs.
    datasets = [
        pipeline.train_dataset(source, tiny.preprocess, 8, batch, 3, host, hosts)
        for host in range(hosts)
    ]
    steps = [[record_of(dataset[step]) for dataset in datasets] for step in range(25)]
    assert all(len(part) == batch // hosts for parts in steps for part in parts)
    stream = list(itertools.chain(*(itertools.chain(*parts) for parts in steps)))
    first, second = stream[:100], stream[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_same_batches_with_the_same_augmentations_on_any_number_of_hosts(tiny, hosts):
    source = sources.open_source(tiny.data, "train")
    make = lambda *place: pipeline.train_dataset(source, tiny.preprocess, 16, 16, 0, *place)  # noqa: E731
    whole, parts = make(), [make(host, hosts) for host in range(hosts)]
    for step in (0, 1, 89, 90, 1000):  # 89 crosses the end of the first epoch.
        for key in ("image", "label", "mask"):
            together = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(together, whole[step][key])


def test_a_batch_depends_on_step_and_seed_alone(tiny):
    source = sources.open_source(tiny.data, "train")
    make = lambda seed: pipeline.train_dataset(source, tiny.preprocess, 16, 16, seed)  # noqa: E731
    steady = pipeline.read_ahead(make(0), tiny.data, 0, 8)
    late = pipeline.read_ahead(make(0), tiny.data, 5, 8)
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

    batch = pipeline.train_dataset(One(), tiny.preprocess, 16, 16, 0)[0]
    assert len({image.tobytes() for image in batch["image"]}) > 8


def test_flips_are_half_and_can_be_off(tiny):
    ramp = np.tile(np.arange(8, dtype=np.uint8)[None, :, None] * 30, (8, 1, 3))

    class Ramp(Numbers):
        def __init__(self):
            super().__init__(4)
            import io

            from PIL import Image

            buffer = io.BytesIO()
            Image.fromarray(ramp).save(buffer, "PNG")
            self._images = [buffer.getvalue()] * 4

    for flip, low, high in ((True, 0.4, 0.6), (False, 0, 0)):
        tiny.preprocess.flip = flip
        images = pipeline.train_dataset(Ramp(), tiny.preprocess, 8, 400, 0)[0]["image"]
        flipped = (images[:, 0, 0, 0] > images[:, 0, -1, 0]).mean()
        assert low <= flipped <= high


def test_images_cross_as_uint8(tiny):
    source = sources.open_source(tiny.data, "train")
    batch = pipeline.train_dataset(source, tiny.preprocess, 16, 4, 0)[0]
    shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert shapes == {
        "image": ("uint8", (4, 16, 16, 3)),
        "label": ("int32", (4,)),
        "mask": ("float32", (4,)),
    }


@pytest.mark.parametrize(
    ("count", "batch", "hosts"), [(100, 8, 1), (100, 8, 4), (5, 8, 2), (16, 8, 2)]
)
def test_evaluation_pads_and_drops_nothing(tiny, count, batch, hosts):
    seen = collections.Counter()
    lengths = set()
    for host in range(hosts):
        dataset = pipeline.eval_dataset(Numbers(count), tiny.preprocess, 8, batch, host, hosts)
        batches = list(pipeline.read_ahead(dataset, tiny.data))
        lengths.add(len(batches))
        for part in batches:
            assert len(part["mask"]) == batch // hosts
            kept = part["mask"] == 1
            seen.update(part["image"][kept, 0, 0, 0].tolist())
            assert not part["image"][~kept].any()
    assert seen == dict.fromkeys(range(count), 1)
    assert lengths == {-(-count // batch)}  # The same number of steps on every host.


def test_an_unreadable_record_is_named(tiny):
    source = Numbers(32)
    source._images[7] = b"\xff\xd8broken"
    batches = pipeline.read_ahead(
        pipeline.train_dataset(source, tiny.preprocess, 8, 8, 0), tiny.data, 0, 4
    )
    with pytest.raises(UserError, match="cannot read number 7"):
        list(batches)


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
        pipeline.check_config(tiny.preprocess)
