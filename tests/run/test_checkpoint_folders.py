"""Which errors of a save are the disk's or the bucket's, so that the run goes on."""

import pathlib

import pytest
from fsspec.exceptions import FSTimeoutError

from effnet_jax.run.checkpoint_folders import InBucket, OnDisk


def chained(error: Exception) -> TimeoutError:
    """As Orbax raises the TimeoutError of one of its futures."""
    try:
        raise TimeoutError("ChainedFuture completed 3/4 futures") from error
    except TimeoutError as wrapped:
        return wrapped


@pytest.mark.parametrize(
    ("error", "on_disk", "in_bucket"),
    [
        (OSError(28, "No space left on device"), True, None),
        (ValueError("OUT_OF_RANGE: os_error_code='28'"), True, None),
        (TimeoutError("waited 1200 s"), False, False),
        (chained(TimeoutError("a future")), False, False),
        (FSTimeoutError(), False, True),
        (chained(FSTimeoutError()), False, True),
    ],
)
def test_errors_of_the_storage_are_told_from_others(error, on_disk, in_bucket):
    path = pathlib.Path("checkpoints")
    assert OnDisk(path).refused(error) == on_disk
    if in_bucket is not None:  # Other errors need the packages for buckets.
        assert InBucket(path).refused(error) == in_bucket
