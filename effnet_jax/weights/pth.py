"""Reads PyTorch's files without PyTorch, and without running anything in them.

A pickle is a program that can call any function by name. Here it can call only a few functions,
which only record where a tensor is in the file.
"""

import pathlib
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from effnet_jax.errors import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # Start of a file before PyTorch 1.6.
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Types that training programs save next to weights, in all versions of NumPy and Python's pickle.
BUILTINS = "bool bytearray complex dict float frozenset int list object set slice str tuple"
BESIDE = {
    "argparse": "Namespace",
    "collections": "Counter defaultdict deque",
    "datetime": "date datetime timedelta",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "numpy": "dtype ndarray",
    "torch": "device dtype float16 float32 float64 bfloat16 int32 int64",
    "_codecs": "encode",
    **dict.fromkeys(("builtins", "__builtin__"), BUILTINS),
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct scalar"),
}
AVERAGED = {"ema", "swa", "avg", "average", "averaged", "averages"}  # Words in a key.
NESTED = 3  # Maximum number of dicts around a state dict.


class Storage(NamedTuple):
    """The memory of a tensor in the file: its key, dtype and number of elements."""

    key: str
    dtype: np.dtype
    count: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides are in elements, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, memory: bytes) -> np.ndarray:
        """Returns the array; raises ValueError if it is not within the memory."""
        values = np.frombuffer(memory, self.storage.dtype)
        if len(self.shape) != len(self.strides) or min((0, *self.shape, *self.strides)) < 0:
            raise ValueError(f"a tensor has shape {self.shape} and strides {self.strides}")
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        if 0 not in self.shape and not 0 <= self.offset <= last < len(values):
            raise ValueError(f"a tensor of shape {self.shape} ends outside of its storage")
        strides = [stride * values.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides)
        return np.array(view)  # A copy, in order.


class _Dict(dict):
    """A dict that ignores the attributes which a pickle sets."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert(dict):
    """Replaces objects saved next to weights: accepts all arguments and state, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    append = extend = add = __setstate__
    __hash__ = object.__hash__


def _tensor(
    storage: Storage,
    offset: int,
    shape: Any,
    strides: Any,
    grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """Replaces torch._utils._rebuild_tensor_v2."""
    if metadata:  # PyTorch reads the numbers as negated or conjugate.
        raise ValueError(f"a tensor is a view ({', '.join(map(str, metadata))}); save clones")
    return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, path: pathlib.Path):
        super().__init__(file)
        self._path, self.storages = path, {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        if name in BESIDE.get(module.removesuffix("._local"), "").split():
            return _Inert
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch._utils" and name.startswith("_rebuild"):
            raise UserError(
                f"{self._path} has a kind of tensor that can't be read ({name}), for example "
                "quantised, sparse or meta; save plain ones of float32, float16 or bfloat16"
            )
        raise UserError(
            f"{self._path} wants to run code: it names {module}.{name}, but weights need only "
            "tensors. Nothing in it was run. If you trust its source, save only the weights with "
            "torch.save(model.state_dict(), FILE), or as .safetensors"
        )

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError(f"{kind!r} is not a known storage")
        storage = Storage(str(key), np.dtype(STORAGES[storage]), int(count))
        return self.storages.setdefault(storage.key, storage)


def read(path: pathlib.Path, weights: str) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict, by name.

    Args:
      path: a file of `torch.save`, in the zip format since PyTorch 1.6 or the older format.
      weights: "ema" or "raw", if a training program has saved both; or the key of a dict.

    Raises:
      UserError: the file is damaged, has no state dict or several, or wants to run code.
    """
    try:
        state, memory = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        tensors = _choose(dict(_state_dicts(state)), weights, path)
        if not tensors:
            raise UserError(
                f"{path} has no dict of tensors by name; save one with "
                "torch.save(model.state_dict(), FILE)"
            )
        return {name: tensor.read(memory(tensor.storage)) for name, tensor in tensors.items()}
    except UserError:
        raise
    except Exception as error:  # A damaged pickle raises a dozen types of error.
        raise UserError(f"{path} is a damaged or unsupported PyTorch file: {error}") from None


def _state_dicts(state: Any, key: str = "", depth: int = NESTED) -> Iterator[tuple[str, Any]]:
    """Yields the key ("", "state_dict", "state/model") and tensors of every dict with tensors."""
    items = state.items() if isinstance(state, dict) else ()
    if tensors := {str(name): value for name, value in items if isinstance(value, Tensor)}:
        yield key, tensors
    for name, value in items if depth else ():
        yield from _state_dicts(value, f"{key}/{name}".removeprefix("/"), depth - 1)


def _choose(
    dicts: dict[str, dict[str, Tensor]], weights: str, path: pathlib.Path
) -> dict[str, Tensor]:
    """Returns the state dict that `weights` selects; raises UserError if none or several fit.

    Dicts without names of weights, such as an optimizer's state or random state, are ignored.
    """
    if weights in dicts:
        return dicts[weights]
    networks = {
        key: tensors
        for key, tensors in dicts.items()
        if any(name.endswith(".weight") for name in tensors)
    } or dicts
    averaged = [key for key in networks if AVERAGED & {*re.split("[^a-z]+", key.lower())}]
    raw = [key for key in networks if key not in averaged]
    chosen = {"ema": averaged or raw, "raw": raw}.get(weights, [])
    keys = ", ".join(networks)
    if networks and not chosen:
        raise UserError(f"{path} has no weights {weights!r}; its state dicts: {keys}")
    if any(networks[key] != networks[chosen[0]] for key in chosen):
        raise UserError(
            f"{path} has several state dicts ({keys}); name one, as in --weights={chosen[0]} of "
            "effnet-jax convert"
        )
    return networks[chosen[0]] if chosen else {}


def _read_zip(path: pathlib.Path) -> tuple[Any, Callable[[Storage], bytes]]:
    archive = zipfile.ZipFile(path)
    if len(found := [name for name in archive.namelist() if name.endswith("/data.pkl")]) != 1:
        raise ValueError(f"it is an archive of {', '.join(archive.namelist()[:4])}")
    (pickled,) = found
    folder = pickled.removesuffix("data.pkl")
    order = f"{folder}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("its numbers are big-endian")
    with archive.open(pickled) as file:
        state = _Unpickler(file, path).load()
    return state, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _read_legacy(path: pathlib.Path) -> tuple[Any, Callable[[Storage], bytes]]:
    with open(path, "rb") as file:
        if _Unpickler(file, path).load() != MAGIC:
            raise ValueError("it is a pickle of something else than tensors")
        protocol, system = (_Unpickler(file, path).load() for _ in range(2))
        if protocol != PROTOCOL or not system["little_endian"]:
            raise ValueError("its protocol or byte order is not supported")
        unpickler = _Unpickler(file, path)
        state, memory = unpickler.load(), {}
        for key in _Unpickler(file, path).load():
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            if count != storage.count:
                raise ValueError(f"storage {key} has {count} numbers, not {storage.count}")
            memory[key] = file.read(min(count * storage.dtype.itemsize, path.stat().st_size))
            if len(memory[key]) != count * storage.dtype.itemsize:
                raise ValueError("it is truncated")
    return state, lambda storage: memory[storage.key]
