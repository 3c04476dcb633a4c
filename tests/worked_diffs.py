"""Uses what the diffs of docs/contributing.md add, in a copy of the package that has them.

test_docs.py applies the diffs and runs this file there, with the page's commands as its argument.
"""

import csv
import importlib
import json
import pathlib
import sys

import flax.traverse_util
import jax
import numpy as np
import optax
from PIL import Image
from safetensors.numpy import save_file

import effnet_jax
from effnet_jax import config as config_lib
from effnet_jax import models, scaling, weights
from effnet_jax.data import sources
from effnet_jax.training.optimizer import build_optimizer
from effnet_jax.weights import origins
from effnet_jax.weights.names import list_arrays

assert pathlib.Path(effnet_jax.__file__).is_relative_to(pathlib.Path.cwd())


def check_commands(commands: list[list[str]]) -> None:
    for program, *words in commands:
        name, *arguments = words if program == "effnet-jax" else ["train", *words[1:]]
        args = importlib.import_module(f"effnet_jax.tools.{name}").PARSER.parse_args(arguments)
        if "config" in args:
            config_lib.validate(args.config)


def check_block() -> None:
    network = effnet_jax.create_model("plain,phi=-4", num_classes=10)
    images = np.zeros((1, 64, 64, 3), np.float32)
    made = jax.eval_shape(network.init_variables, jax.random.key(0))
    logits, _ = jax.eval_shape(lambda made: network.apply(made, images, train=False), made)
    assert logits.shape == (1, 10)
    counted = scaling.cost(network.architecture.layers()).parameters
    assert counted == sum(np.prod(array.shape) for array in jax.tree.leaves(made["params"]))


def check_optimizer() -> None:
    config = config_lib.get_config().optimizer
    config.name, config.weight_decay_rules = "adabelief", ((r".*", 0.0),)
    own, params = config.adabelief, {"kernel": np.ones((2, 2), np.float32)}
    found = build_optimizer(config, lambda step: 0.1, params)
    wanted = optax.adabelief(0.1, own.b1, own.b2, own.epsilon)
    state, expected = found.init(params), wanted.init(params)
    for scale in (1.0, -3.0, 2.0):
        gradient = {"kernel": scale * np.arange(4, dtype=np.float32).reshape(2, 2)}
        update, state = found.update(gradient, state, params)
        other, expected = wanted.update(gradient, expected, params)
        np.testing.assert_allclose(update["kernel"], other["kernel"], rtol=1e-6)


def check_source() -> None:
    for split in ("train", "val"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(f"{split}.png")
        with open(f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("PATH", "CLASS"), (f"{split}.png", f"a {split}")])
    data = config_lib.get_config().data
    data.source, data.data_dir = "csv", "."
    source = sources.open_source(data, "val")
    assert source.classes == ("a train", "a val") and len(source) == 1
    assert source[0] == {"image": pathlib.Path("val.png").read_bytes(), "label": 1}


def check_weights() -> None:
    network, names = effnet_jax.create_model("b0", num_classes=10), origins.NAMES["mylab"]
    made, random = (
        jax.eval_shape(network.init_variables, jax.random.key(0)),
        np.random.default_rng(0),
    )
    shapes = {name: x.shape for name, x in flax.traverse_util.flatten_dict(made, sep="/").items()}
    arrays = {name: random.random(shape, np.float32) for name, shape in shapes.items()}
    theirs = {
        names.of(array): np.ascontiguousarray(names.theirs(array, arrays[array.name]))
        for array in list_arrays(network.architecture)
    }
    assert len(theirs) == len(arrays) and "s2.b1.dw_bn.running_mean" in theirs
    save_file(theirs, "mylab.safetensors")
    found = weights.load("mylab.safetensors")
    assert found.origin == "mylab" and found.preprocess["resolution"] == 256
    assert (found.config.padding, found.config.batch_norm_epsilon) == ("symmetric", 1e-5)
    for name, value in flax.traverse_util.flatten_dict(found.variables, sep="/").items():
        np.testing.assert_array_equal(value, arrays[name])


check_block()
check_optimizer()
check_source()
check_weights()
check_commands(json.loads(sys.argv[1]))
assert models.BASES["plain"].activation == "relu"
