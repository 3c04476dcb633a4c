import os
import zipfile

import numpy as np
import pytest

from effnet_jax.errors import UserError
from effnet_jax.weights import pth
from tests.weights.stand_ins import _Reduced, write_pth


def some_arrays():
    random = np.random.default_rng(0)
    return {
        "plain": random.standard_normal((4, 3), np.float32),
        # In memory in another order than its axes say, as 50 of Lite0's are.
        "strided": random.standard_normal((5, 2, 3), np.float32).transpose(2, 0, 1),
        "scalar": np.float32(7).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_with_their_strides(tmp_path, zipped):
    arrays = some_arrays()
    path = tmp_path / "weights.pth"
    write_pth(path, arrays, zipped)
    found = pth.read(path, "ema")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


def test_weights_beside_other_things_are_found(tmp_path):
    path = tmp_path / "weights.pth"
    write_pth(path, some_arrays(), extra={"epoch": 3})
    assert set(pth.read(path, "ema")) == set(some_arrays())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "__builtin__.eval"),
        (np.zeros, (3,), "numpy.zeros"),
    ],
)
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(
    tmp_path, zipped, function, arguments, name
):
    path, trace = tmp_path / "weights.pth", tmp_path / "was_here"
    arguments = [str(a).format(trace) for a in arguments]
    write_pth(path, some_arrays(), zipped, extra=_Reduced(function, tuple(arguments)))
    with pytest.raises(UserError, match=f"wants to run code: it names {name}"):
        pth.read(path, "ema")
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("strides", [(4, 1), (3, -1), (2**40, 1), (3,)])
def test_a_tensor_that_lies_outside_of_its_storage_is_refused(tmp_path, zipped, strides):
    path = tmp_path / "weights.pth"
    write_pth(path, {"a": np.ones((4, 3), np.float32)}, zipped, strides={"a": strides})
    with pytest.raises(UserError, match="damaged or foreign"):
        pth.read(path, "ema")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    write_pth(path, some_arrays(), zipped)
    whole = path.read_bytes()
    for length in range(3, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged or foreign"):
            pth.read(path, "ema")


def test_a_flipped_bit_of_a_zip_is_noticed(tmp_path):
    path = tmp_path / "weights.pth"
    array = np.ones((64, 64), np.float32)
    write_pth(path, {"a": array})
    whole = bytearray(path.read_bytes())
    whole[whole.find(array.tobytes()) + 1000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="damaged or foreign"):
        pth.read(path, "ema")


def test_a_file_without_tensors_says_so(tmp_path):
    path = tmp_path / "weights.pth"
    write_pth(path, {})
    with pytest.raises(UserError, match="no dict of tensors"):
        pth.read(path, "ema")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(UserError, match="damaged or foreign"):
        pth.read(path, "ema")
