"""TFLite files: converted from StableHLO by litert-converter, run by ai-edge-litert."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

from effnet_jax.errors import UserError, check_packages
from effnet_jax.export.stablehlo import files
from effnet_jax.run.files import read_json

CONVERTER = "litert-converter==0.5.0"  # Its API differs between minor releases.
FOLDED = True  # `convert` takes a function with BatchNorm folded.


def check_installed() -> None:
    """Raises UserError if a package for writing a file is missing."""
    check_packages("writing TFLite", CONVERTER, "ai-edge-litert")


def convert(
    logits: Callable, images: jax.ShapeDtypeStruct, softmax: bool, metadata: dict[str, Any]
) -> tuple[bytes, ...]:
    """Returns the contents of `files` for a function of images [N, h, w, 3].

    If N is symbolic, the file has a batch of 1, which a program that runs it can resize.
    """
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter

    def function(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(images)) if softmax else logits(images)

    batch, *sides = images.shape
    shape = (batch if isinstance(batch, int) else 1, *sides)
    inputs = jax.ShapeDtypeStruct(shape, images.dtype)
    exported = export.export(jax.jit(function), platforms=("cpu",))(inputs)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        converter.set_signature(
            module.operation, "serving_default", ["images"], [metadata["output"]]
        )
        converter.run_convert_to_tfl_passes(
            module, passmanager.PassManager(), converter.ConvertToTFLConfig()
        )
        content = converter.export_flatbuffer_to_bytes(module.operation)
    return content, (json.dumps(metadata, indent=2) + "\n").encode()


def read(path: pathlib.Path) -> tuple[dict[str, Any], tuple, np.dtype, Callable]:
    """Returns a file's metadata, the shape and dtype of its images, and its function.

    Raises UserError if the file or its JSON file can't be read.
    """
    check_packages(str(path), "ai-edge-litert")
    from ai_edge_litert.interpreter import Interpreter

    path, json_path = files(path)
    try:
        metadata, interpreter = read_json(json_path), Interpreter(str(path))
        interpreter.allocate_tensors()
        (images,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    except Exception as error:  # Damaged files raise several types of error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"can't read {path} with {json_path.name}: {reason}") from None

    def run(batch: np.ndarray) -> np.ndarray:
        if batch.shape != tuple(interpreter.get_input_details()[0]["shape"]):
            interpreter.resize_tensor_input(images["index"], batch.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(images["index"], batch)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return metadata, (None, *images["shape"][1:].tolist()), np.dtype(images["dtype"]), run
