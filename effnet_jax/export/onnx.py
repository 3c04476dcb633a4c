"""ONNX files: written from a function, quantised to int8, and run by onnxruntime."""

import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from effnet_jax.errors import UserError, check_packages
from effnet_jax.export.graph import Graph

# Versions of operations and file format; onnxruntime reads both since 1.14, of February 2023.
OPSET, IR_VERSION = 18, 8
INPUT = "images"
FOLDED = True  # `convert` takes a function with BatchNorm folded.


def check_installed() -> None:
    """Raises UserError if a package for writing a file is missing."""
    check_packages("writing ONNX", "onnx", "onnxruntime")


def files(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the file, which includes the metadata."""
    return (path,)


def convert(
    logits: Callable,
    images: jax.ShapeDtypeStruct,
    softmax: bool,
    metadata: dict[str, Any],
    calibration: Iterable[np.ndarray] | None = None,
) -> tuple[bytes, ...]:
    """Returns the contents of `files` for a function of images [N, h, w, 3]; N may be symbolic.

    With `calibration`, batches of such images, weights and activations are quantised to 8 bits.
    Raises UserError for an operation that has no translation.
    """
    import onnx

    model = _model(logits, images, softmax)
    if calibration is not None:
        model = _quantize(model, calibration)
    model.producer_name = "effnet_jax"
    del model.metadata_props[:]  # Those of the quantiser.
    onnx.helper.set_model_props(model, {key: json.dumps(each) for key, each in metadata.items()})
    return (model.SerializeToString(),)


def _model(logits: Callable, images: jax.ShapeDtypeStruct, softmax: bool) -> Any:
    """Returns the `onnx.ModelProto` of a function."""
    import onnx
    from onnx import helper

    traced, graph = jax.make_jaxpr(logits)(images), Graph()
    transposed = graph.add("Network", "Transpose", [INPUT], images.shape, perm=[0, 3, 1, 2])
    (last,) = graph.translate(traced.jaxpr, traced.consts, [transposed], "")
    for operation in ["Flatten", "Softmax"][: 1 + softmax]:
        last = graph.add("Network", operation, [last.name], last.shape)
    graph.merge()
    output = graph.nodes[-1].output = "probabilities" if softmax else "logits"
    nodes = [
        helper.make_node(each.op, each.inputs, [each.output], each.output, **each.attributes)
        for each in graph.nodes
    ]
    used = {name for node in nodes for name in node.input}
    constants = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in graph.constants.items()
        if name in used
    ]
    batch, *sides = images.shape
    batch = batch if isinstance(batch, int) else "batch"
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(images.dtype))
    inputs = helper.make_tensor_value_info(INPUT, dtype, [batch, *sides])
    shape = [batch, last.shape[-1]]
    outputs = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape)
    network = helper.make_graph(nodes, "network", [inputs], [outputs], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(network, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _quantize(model: Any, calibration: Iterable[np.ndarray]) -> Any:
    """Returns the model with int8 weights, one scale per channel, and uint8 activations."""
    import onnx
    from onnxruntime import quantization

    batches = iter(calibration)
    if (first := next(batches, None)) is None:
        raise UserError("int8 needs at least one image for calibration")
    batches = itertools.chain([first], batches)

    class Reader(quantization.CalibrationDataReader):
        """Returns the batches one by one, and None after the last."""

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({INPUT: images} for images in batches), None)

    with tempfile.TemporaryDirectory() as folder:
        plain, result = (pathlib.Path(folder, f"{name}.onnx") for name in ("plain", "int8"))
        # This only infers shapes; nothing is left to optimise.
        quantization.quant_pre_process(
            model, plain, skip_optimization=True, skip_symbolic_shape=True
        )
        quantization.quantize_static(
            plain,
            result,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
        )
        return onnx.load(result)


def read(path: pathlib.Path) -> tuple[dict[str, Any], tuple, np.dtype, Callable]:
    """Returns a file's metadata, the shape and dtype of its images, and its function.

    Raises UserError if the file can't be read.
    """
    check_packages(str(path), "onnxruntime")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        stored = session.get_modelmeta().custom_metadata_map
        metadata = {key: json.loads(value) for key, value in stored.items()}
    except Exception as error:  # onnxruntime has a dozen types of error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"can't read {path}: {reason}") from None
    images = session.get_inputs()[0]
    dtype = {"tensor(uint8)": np.uint8}.get(images.type, np.float32)

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {INPUT: images})[0]

    return metadata, tuple(images.shape), np.dtype(dtype), run
