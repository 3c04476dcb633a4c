"""Exported files of small networks, run by JAX alone and by onnxruntime."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import export as jax_export

from effnet_jax import export, models
from effnet_jax.data.preprocess import normalize
from effnet_jax.errors import UserError
from effnet_jax.export.graph import Graph, Tensor
from tests.evaluating import random_values
from tests.weights.stand_ins import random_weights

TINY = "efficientnet_v2,w=0.1,d=0.1,r=32"  # Six blocks that have every kind of layer.
TOLERANCE = 1e-4  # Relative to the largest logit.
# Every kind of block, both paddings, a pooled stem, and strides on odd and even sizes.
NETWORKS = {
    "efficientnet": "efficientnet,w=0.25,d=0.2,r=32",
    "lite": "efficientnet_lite,w=0.25,d=0.2,r=33",
    "edgetpu": "efficientnet_edgetpu,w=0.25,d=0.2,r=32",
    "v2": TINY,
    "mobilenet": "mobilenet_v1,w=0.1,d=0.2,r=32",
    "resnet": "resnet18,w=0.1,d=0.5,r=32",
}


def make_weights(name, **changes):
    """Weights that keep activations in range."""
    found, rng = random_weights(name), np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random_values(rng, x), found.variables)
    config = found.config.copy_and_resolve_references().unlock()
    config.update(changes)
    return found.replace(config=config.lock(), variables=variables)


def draw(weights, count):
    side = weights.preprocess["resolution"]
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)


def logits_of(weights, pixels):
    model, made = models.build(weights.config), weights.preprocess
    images = normalize(pixels, made["mean"], made["std"])
    run = jax.jit(lambda images: model.apply(weights.variables, images, train=False)[0])
    return np.asarray(run(images))


def assert_close(found, expected):
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("effnet_jax", "flax"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import pathlib
import numpy as np
from jax import export

exported = export.deserialize(bytearray(pathlib.Path("net.stablehlo").read_bytes()))
images = np.load("images.npy")
np.savez("out.npz", some=exported.call(images), one=exported.call(images[:1]))
"""


def test_stablehlo_runs_with_jax_alone_for_any_batch(tmp_path):
    weights = make_weights(TINY)
    path = tmp_path / "net.stablehlo"
    export.write(path, weights)
    pixels = draw(weights, 3)
    made = weights.preprocess
    np.save(tmp_path / "images.npy", normalize(pixels, made["mean"], made["std"]))
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True)
    out, expected = np.load(tmp_path / "out.npz"), logits_of(weights, pixels)
    assert_close(out["some"], expected)
    assert_close(out["one"], expected[:1])
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    stated = json.loads((tmp_path / "net.stablehlo.json").read_text())
    assert stated["preprocess"] == made and stated["classes"] == list(weights.classes)
    assert stated["images"].startswith("[batch, 32, 32, 3] RGB, float32")


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_logits_of_the_network(name, tmp_path):
    padding = "symmetric" if name in ("efficientnet", "resnet") else "same"
    weights = make_weights(NETWORKS[name], padding=padding)
    path = tmp_path / "net.onnx"
    export.write(path, weights)
    exported, pixels = export.read(path), draw(weights, 3)
    assert_close(exported.outputs(pixels), logits_of(weights, pixels))
    assert_close(exported.outputs(pixels[:1]), logits_of(weights, pixels[:1]))
    assert exported.classes == weights.classes and not exported.softmax
    assert exported.preprocess.to_dict() == weights.preprocess
    model = onnx.load(path)
    assert {node.op_type for node in model.graph.node} <= {
        *("Transpose", "Conv", "Relu", "Clip", "Sigmoid", "Mul", "Add", "MaxPool"),
        *("ReduceMean", "Flatten"),
    }
    layers = len(models.architecture(weights.config).layers())
    counted = [node.op_type for node in model.graph.node]
    assert counted.count("Conv") == layers  # Normalisation is folded into them.
    kinds = {each.data_type for each in model.graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert model.ir_version == 8


@pytest.mark.parametrize("ending", export.FORMATS)
def test_pixels_softmax_and_a_fixed_batch(ending, tmp_path):
    if ending == ".tflite":
        pytest.importorskip("litert_converter")  # In the environment of `make export-check`.
    weights = make_weights(TINY)
    path = tmp_path / f"net{ending}"
    export.write(path, weights, batch=2, pixels=True, softmax=True)
    exported, pixels = export.read(path), draw(weights, 3)
    batch = None if ending == ".tflite" else 2  # Which its interpreter can change.
    assert exported.softmax and exported.images == ((batch, 32, 32, 3), np.uint8)
    probabilities = np.asarray(jax.nn.softmax(logits_of(weights, pixels)))
    assert_close(exported.outputs(pixels), probabilities)
    assert_close(exported.probabilities(pixels), probabilities)


def test_tflite_gives_the_logits_of_the_network(tmp_path):
    pytest.importorskip("litert_converter")  # In the environment of `make export-check`.
    weights = make_weights(NETWORKS["efficientnet"])
    export.write(tmp_path / "net.tflite", weights)
    exported, pixels = export.read(tmp_path / "net.tflite"), draw(weights, 3)
    assert_close(exported.outputs(pixels), logits_of(weights, pixels))
    assert_close(exported.outputs(pixels[:1]), logits_of(weights, pixels[:1]))
    assert exported.classes == weights.classes


def test_int8_keeps_the_choice_and_a_quarter_of_the_size(tmp_path):
    weights = make_weights("efficientnet_lite,w=0.5,d=0.2,r=32")
    calibration = [draw(weights, 16)]
    export.write(tmp_path / "net.onnx", weights)
    export.write(tmp_path / "int8.onnx", weights, calibration=calibration)
    plain, int8 = (export.read(tmp_path / f"{name}.onnx") for name in ("net", "int8"))
    pixels = draw(weights, 16)
    difference = np.abs(int8.outputs(pixels) - plain.outputs(pixels)).max()
    assert 0 < difference < 0.1 * np.abs(plain.outputs(pixels)).max()
    assert int8.classes == weights.classes
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("net", "int8")]
    assert sizes[1] < 0.4 * sizes[0]  # Scales and names weigh more than in a whole network.
    kernels = [x for x in onnx.load(tmp_path / "int8.onnx").graph.initializer if len(x.dims) == 4]
    assert {kernel.data_type for kernel in kernels} == {onnx.TensorProto.INT8}


def test_an_operation_without_translation_is_named():
    def translate(function):
        traced, graph = jax.make_jaxpr(function)(np.zeros((2, 4, 4, 3), np.float32)), Graph()
        return graph.translate(traced.jaxpr, traced.consts, [Tensor("x", (2, 4, 4, 3))], "net")

    for function, name in (
        (lambda x: jnp.sort(x), "sort"),
        (lambda x: x.transpose(0, 2, 1, 3), "transpose"),
        (lambda x: x.reshape(2, 2, 8, 3), "reshape"),  # The numbers stay, their places don't.
        (lambda x: x.sum(1), "reduce_sum"),
        (lambda x: x + np.arange(4, dtype=np.float32)[:, None, None], "add"),
        (lambda x: x + np.arange(4, dtype=np.float32)[:, None], "add"),
        (lambda x: jax.lax.scan(lambda y, _: (2 * y, None), x, length=2)[0], "scan"),
        (lambda x: jnp.einsum("nhwc,nhwd->nhwcd", x, x), "dot_general"),
    ):
        with pytest.raises(UserError, match=f"operation '{name}' of .* in net"):
            translate(function)


def test_what_cannot_be_written_or_read_is_reported(tmp_path, monkeypatch):
    weights, path = make_weights(TINY), tmp_path / "net.stablehlo"
    for wrong, text in (
        (tmp_path / "net.pb", r"net\.pb must end in \.stablehlo, \.onnx or \.tflite"),
        (tmp_path / "net", r"net must end in \.stablehlo, \.onnx or \.tflite"),
    ):
        with pytest.raises(UserError, match=text):
            export.write(wrong, weights)
    with pytest.raises(UserError, match=r"--int8 applies to files that end in \.onnx"):
        export.write(path, weights, calibration=[])
    with pytest.raises(UserError, match="int8 needs at least one image"):
        export.write(tmp_path / "int8.onnx", weights, calibration=[])
    path.with_name("net.stablehlo.json").write_text("{}")
    with pytest.raises(UserError, match=r"net\.stablehlo\.json already exists"):
        export.write(path, weights)
    with pytest.raises(UserError, match="no file"):
        export.read(tmp_path / "nowhere.onnx")
    for name in ("net.stablehlo", "net.onnx"):
        (tmp_path / name).write_bytes(b"no network")
        with pytest.raises(UserError, match=rf"can't read .*{name}"):
            export.read(tmp_path / name)
    images = onnx.helper.make_tensor_value_info("images", 1, [1])
    identity = onnx.helper.make_node("Identity", ["images"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", 1, [1])
    graph = onnx.helper.make_graph([identity], "other", [images], [out])
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "o.onnx")
    with pytest.raises(UserError, match="not exported by effnet_jax"):
        export.read(tmp_path / "o.onnx")
    monkeypatch.setitem(sys.modules, "litert_converter", None)
    with pytest.raises(UserError, match=r"pip install litert-converter==0\.5\.0"):
        export.write(tmp_path / "new.tflite", weights)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs onnxruntime: pip install onnxruntime"):
        export.write(tmp_path / "new.onnx", weights)
    with pytest.raises(UserError, match=r"o\.onnx needs onnxruntime: pip install onnxruntime"):
        export.read(tmp_path / "o.onnx")
