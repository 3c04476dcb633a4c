"""Lists the size and the cost of models, without building them.

Examples:
  effnet-jax summary b0 phi=1.5 resnet50 mobilenet_v2,w=2,d=1,r=224
  effnet-jax summary lite0 --layers --num_classes=10

A MODEL is b0 to b8, l2, lite0 to lite4, edgetpu-s, -m, -l, v2-b0 to v2-b3, v2-s, -m, -l, -xl;
phi=NUMBER, or w=WIDTH,d=DEPTH,r=PIXELS; or another base network, alone or with a comma and one of
these two: efficientnet_lite, _edgetpu, _v2, _v2_s, _v2_m, _v2_l, _v2_xl, mobilenet_v1,
mobilenet_v2, resnet18 to resnet1001. v1, lite, edgetpu and v2 stand for a whole family, and all for
all families.
"""

import argparse
import json
from typing import Any

import rich.table

from effnet_jax import config as config_lib
from effnet_jax import flags, models, scaling
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.report import paper
from effnet_jax.tools import show

PARSER = flags.Parser(__doc__, computes=False)
add = PARSER.group("models")
add("models", nargs="+", metavar="MODEL", help="models or families")
add("--num_classes", type=flags.count, default=1000, metavar="N", help="number of outputs")
stride = "stride of the first layer; 1 for small images"
add("--stem_stride", type=flags.count, default=2, metavar="N", help=stride)
add = PARSER.group("output")
add("--layers", action="store_true", help="also list every layer with its shapes")
add("--json", action="store_true", help=" instead of tables")

# Words that stand for several models.
FAMILIES = {word: [k for k in VARIANTS if k.startswith(word)] for word in ("lite", "edgetpu", "v2")}
FAMILIES["v1"] = [name for name, variant in VARIANTS.items() if variant.base == "efficientnet"]
FAMILIES["all"] = list(VARIANTS)


def describe(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A model as a dict: width, depth, resolution, parameters and multiply-adds."""
    config = config_lib.get_config(name).model
    config.num_classes, config.stem_stride = args.num_classes, args.stem_stride
    layers = models.architecture(config).layers()
    result = {"model": name, **vars(models.coefficients(config)), **counts(scaling.cost(layers))}
    if args.layers:
        result["layers"] = [vars(layer) | counts(layer) for layer in layers]
    return result


def counts(counted: scaling.Layer | scaling.Cost) -> dict[str, int]:
    return {"parameters": counted.parameters, "multiply_adds": counted.multiply_adds}


def model_table(
    rows: list[dict[str, Any]], published: dict[str, dict[str, str]]
) -> rich.table.Table:
    """A table with a row for each model: counted and, if known, published figures."""
    columns = ("model", "width", "depth", "resolution", "parameters", "published", "multiply-adds")
    table = rich.table.Table(*columns, "published")
    for row in rows:
        cells = [row["model"], f"{row['width']:.4g}", f"{row['depth']:.4g}", str(row["resolution"])]
        printed = published.get(row["model"], {"params_M": "", "flops_B": ""})
        for key, published_key in (("parameters", "params_M"), ("multiply_adds", "flops_B")):
            text, unit = printed[published_key], published_key[-1]
            cells += [f"{row[key]:,}", text and f"{text} {unit}"]
        table.add_row(*cells)
    return table


def layer_table(row: dict[str, Any]) -> rich.table.Table:
    """A table of the layers of one model, with the shapes of their outputs."""
    columns = ("layer", "kernel", "stride", "output", "groups", "parameters", "multiply-adds")
    table = rich.table.Table(*columns, title=row["model"])
    for layer in row["layers"]:
        output = f"{layer['size']} x {layer['size']} x {layer['outputs']}"
        kernel = f"{layer['kernel']} x {layer['kernel']}"
        counts = [f"{layer[key]:,}" for key in ("groups", "parameters", "multiply_adds")]
        table.add_row(layer["name"], kernel, str(layer["stride"]), output, *counts)
    return table


def main(args: argparse.Namespace) -> None:
    names = [name for word in args.models for name in FAMILIES.get(word, [word])]
    rows = [describe(name, args) for name in names]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    # Figures are published for 1000 classes and the usual stem only.
    as_published = (args.num_classes, args.stem_stride) == (1000, 2)
    published = paper.published() if as_published else {}
    show(model_table(rows, published))
    for line in paper.differences(published.keys() & set(names)):
        print(line)
    for row in rows if args.layers else ():
        show(layer_table(row))
