import argparse
import datetime
import io
import os
import pathlib
import pickle
import zipfile
from collections import Counter, defaultdict

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


def test_tensors_that_are_not_their_numbers_are_refused(tmp_path):
    """The imaginary part of a conjugate counts as negated: its sign was lost."""
    path = tmp_path / "weights.pth"
    write_pth(path, some_arrays(), metadata=[{"neg": True}])
    with pytest.raises(UserError, match=r"a tensor is a view \(neg\); save clones"):
        pth.read(path, "ema")
    write_pth(path, some_arrays(), metadata=[None])
    assert set(pth.read(path, "ema")) == set(some_arrays())
    write_pth(path, some_arrays(), rebuild="_rebuild_qtensor")
    with pytest.raises(UserError, match=r"kind of tensor that can't be read \(_rebuild_qtensor\)"):
        pth.read(path, "ema")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("strides", [(4, 1), (3, -1), (2**40, 1), (3,)])
def test_a_tensor_that_lies_outside_of_its_storage_is_refused(tmp_path, zipped, strides):
    path = tmp_path / "weights.pth"
    write_pth(path, {"a": np.ones((4, 3), np.float32)}, zipped, strides={"a": strides})
    with pytest.raises(UserError, match="damaged or unsupported"):
        pth.read(path, "ema")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zipped):
    path = tmp_path / "weights.pth"
    write_pth(path, some_arrays(), zipped)
    whole = path.read_bytes()
    for length in range(3, len(whole), len(whole) // 50):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged or unsupported"):
            pth.read(path, "ema")


def test_a_flipped_bit_of_a_zip_is_noticed(tmp_path):
    path = tmp_path / "weights.pth"
    array = np.ones((64, 64), np.float32)
    write_pth(path, {"a": array})
    whole = bytearray(path.read_bytes())
    whole[whole.find(array.tobytes()) + 1000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match="damaged or unsupported"):
        pth.read(path, "ema")


def test_a_file_without_tensors_says_so(tmp_path):
    path = tmp_path / "weights.pth"
    write_pth(path, {})
    with pytest.raises(UserError, match="no dict of tensors"):
        pth.read(path, "ema")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    with pytest.raises(UserError, match=r"damaged or uns.* an archive of word/document\.xml"):
        pth.read(path, "ema")
    path.write_bytes(pickle.dumps({"a": [1.0]}))
    with pytest.raises(UserError, match=r"damaged or unsupported .* a pickle of something else"):
        pth.read(path, "ema")


NETWORK = {"conv_stem.weight": np.ones((4, 3), np.float32), "head.bias": np.zeros(4, np.float32)}


def only(state, *names):
    """A part of a state dict, by which several networks in a file are told apart."""
    return {name: state[name] for name in names}


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"net": state, "rng_state": only(state, "head.bias")["head.bias"]},
        lambda state: {"best": {"weights": state}, "optimizer": {"state": {0: {"exp": 1.0}}}},
        lambda state: {"model": state, "best": dict(state)},  # The same tensors twice.
        lambda state: {"model": state, "optimizer": {"state": {0: {"m": state["head.bias"]}}}},
        lambda state: defaultdict(dict, state),
    ],
)
def test_a_state_dict_is_found_under_any_key(tmp_path, around):
    write_pth(path := tmp_path / "w.pth", NETWORK, around=around)
    for weights in ("ema", "raw"):
        found = pth.read(path, weights)
        assert found.keys() == NETWORK.keys()
        np.testing.assert_array_equal(found["conv_stem.weight"], NETWORK["conv_stem.weight"])


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averages_are_those_with_a_key_that_says_so(tmp_path, keys):
    def around(state):
        return {keys[0]: only(state, "conv_stem.weight"), keys[1]: state}

    write_pth(path := tmp_path / "w.pth", NETWORK, around=around)
    assert [len(pth.read(path, which)) for which in ("ema", "raw", *keys)] == [2, 1, 1, 2]
    write_pth(path, NETWORK, around=lambda state: {keys[1]: state})
    with pytest.raises(UserError, match=f"no weights 'raw'; its state dicts: {keys[1]}$"):
        pth.read(path, "raw")


def test_of_several_state_dicts_one_has_to_be_named(tmp_path):
    def around(state):
        return {"nets": {"student": only(state, "conv_stem.weight"), "teacher": state}}

    write_pth(path := tmp_path / "w.pth", NETWORK, around=around)
    with pytest.raises(UserError, match=r"several state dicts \(nets/student, nets/teacher\); n"):
        pth.read(path, "ema")
    assert len(pth.read(path, "nets/teacher")) == 2
    with pytest.raises(UserError, match=r"no weights 'pupil'; its state dicts: nets/stud"):
        pth.read(path, "pupil")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_timm_saves_next_to_weights_is_passed_over(tmp_path, zipped):
    beside = {
        "args": argparse.Namespace(lr=0.1, mean=(0.5, 0.5)),
        "metric": np.float64(81.5),
        "history": np.arange(3.0),
        "path": pathlib.PurePosixPath("out"),
        "seen": {1, 2},
        "counts": Counter("aab"),
        "date": datetime.datetime(2025, 1, 2),
        "bytes": b"\xff",
    }
    write_pth(path := tmp_path / "w.pth", some_arrays(), zipped, extra=beside)
    found = pth.read(path, "ema")
    np.testing.assert_array_equal(found["strided"], some_arrays()["strided"])


@pytest.mark.parametrize(
    "name", ["numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "torch float32"]
)
def test_stand_ins_do_nothing(name):
    pickled = f"c{name.replace(' ', chr(10))}\n(S'touch'\ntR(dS'a'\nI1\nsb.".encode()
    found = pth._Unpickler(io.BytesIO(pickled), pathlib.Path("w.pth")).load()
    assert type(found) is pth._Inert and not found and not vars(found)
