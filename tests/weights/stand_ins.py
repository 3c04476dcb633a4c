"""Weights by chance in any format, and PyTorch's files without PyTorch."""

import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict

import flax.traverse_util
import numpy as np

from effnet_jax import config as default
from effnet_jax import models, weights
from effnet_jax.data.preprocess import Preprocess
from effnet_jax.weights.names import Array, list_arrays
from effnet_jax.weights.origins import NAMES
from tests.conftest import config_for

TINY = "w=0.25,d=0.2,r=32"


def table(model: str, classes: int = 10) -> list[Array]:
    return list_arrays(models.architecture(config_for(model, num_classes=classes)))


def random_weights(model: str = TINY, classes: int = 10) -> weights.Weights:
    """As of a run of ours."""
    random = np.random.default_rng(0)
    arrays = {
        array.name: random.standard_normal(array.shape, np.float32)
        for array in table(model, classes)
    }
    variances = {name: np.abs(value) for name, value in arrays.items() if name.endswith("/var")}
    config = config_for(model, num_classes=classes)
    preprocess = Preprocess.from_config(
        default.get_config(model).preprocess, models.coefficients(config).resolution
    ).to_dict()
    labels = tuple(f"label {number}" for number in range(classes))
    variables = flax.traverse_util.unflatten_dict(arrays | variances, sep="/")
    return weights.Weights(config, variables, preprocess, labels, "ours")


def flat(found: weights.Weights) -> dict[str, np.ndarray]:
    """Arrays by our names."""
    return flax.traverse_util.flatten_dict(found.variables, sep="/")


def in_format(key: str, model: str, classes: int = 10) -> dict[str, np.ndarray]:
    """`random_weights` by the names, and in the order of axes, of a format."""
    arrays, format = flat(random_weights(model, classes)), NAMES[key]
    return {
        format.of(array): np.ascontiguousarray(format.theirs(array, arrays[array.name]))
        for array in table(model, classes)
    }


class _Reduced:
    """Something that is pickled as a call: `reduce` of Python's protocol."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def _modules() -> dict[str, types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils = utils

    def add(module, name):
        def function(*_):
            raise AssertionError("never called")

        function.__module__, function.__qualname__ = module.__name__, name
        setattr(module, name, function)

    add(torch, "FloatStorage")
    add(utils, "_rebuild_tensor_v2")
    add(utils, "_rebuild_qtensor")
    return {"torch": torch, "torch._utils": utils}


def memory(array: np.ndarray) -> bytes:
    """An array's numbers in the order in which they lie, which need not be that of its axes."""
    return array.ravel("K").tobytes()


def write_pth(
    path,
    arrays: dict[str, np.ndarray],
    zipped=True,
    extra=None,
    strides=None,
    around=None,
    rebuild="_rebuild_tensor_v2",
    metadata=(),
):
    """A file as of torch.save.

    Args:
      path: of the file.
      arrays: float32, by name.
      zipped: the form since PyTorch 1.6, else the one before.
      extra: an object to pickle beside the state dict, in a dict around both.
      around: `around(state dict)` is pickled instead of the state dict.
      strides: the tensors' strides, in numbers, by name; else those of an array in order.
      rebuild, metadata: the function that makes each tensor, and its last argument, if any.
    """
    modules = _modules()
    storages = {str(number): array for number, array in enumerate(arrays.values())}
    last = OrderedDict(), *metadata

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return thing.reduced if isinstance(thing, Storage) else None

    class Storage(_Reduced):
        pass

    def tensor(key, name):
        array = arrays[name]
        steps = tuple(stride // 4 for stride in array.strides)
        kind = modules["torch"].FloatStorage
        storage = Storage("storage", kind, key, "cpu", array.size, *([] if zipped else [None]))
        return _Reduced(
            getattr(modules["torch._utils"], rebuild),
            (storage, 0, array.shape, (strides or {}).get(name, steps), False, *last),
        )

    state = OrderedDict(
        (name, tensor(key, name)) for key, name in zip(storages, arrays, strict=True)
    )
    content = state if extra is None else {"state_dict": state, "extra": extra}
    content = around(state) if around else content
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                with archive.open("archive/data.pkl", "w") as file:
                    Pickler(file, 2).dump(content)
                for key, array in storages.items():
                    archive.writestr(f"archive/data/{key}", memory(array))
            return
        with open(path, "wb") as file:
            for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
                pickle.dump(part, file, 2)
            Pickler(file, 2).dump(content)
            pickle.dump(list(storages), file, 2)
            for array in storages.values():
                file.write(struct.pack("<q", array.size) + memory(array))
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
