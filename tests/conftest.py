"""Eight CPU devices, a shared compilation cache, and a tiny experiment for all tests."""

import importlib.metadata
import os
import pathlib
import signal
import sys
import tempfile

# A shell that starts the tests in the background makes this process and its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# These must be set before JAX starts. Tests that need one device start a subprocess without the
# flags. The programs run only a few times, so optimizing them takes longer than it saves.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# Before jaxlib 0.11 the fusion emitters take a third of the compile time.
if importlib.metadata.version("jaxlib") < "0.11":
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not WORKER:  # Workers inherit and share the cache of the first process.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="effnet_jax_tests_")

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import csv  # noqa: E402
import shutil  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from configs import digits  # noqa: E402
from effnet_jax import cli, models, parallel  # noqa: E402
from effnet_jax import config as default  # noqa: E402
from effnet_jax.models.network import Network  # noqa: E402
from effnet_jax.trees import shapes_by_name  # noqa: E402

cli.use_compilation_cache()
GOLDEN = ROOT / "tests" / "golden"
# Six blocks with every kind of layer, in the family that compiles fastest.
TINY = "efficientnet_v2,w=0.1,d=0.1,r=16"
QUICK = "resnet20,w=0.1,d=0.1,r=16"  # For tests of the loop: compiles in half of TINY's time.


def pytest_sessionfinish():
    if not WORKER:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def read_golden(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of golden values."""
    with open(GOLDEN / name, newline="") as file:
        return list(csv.DictReader(file))


def config_for(model: str, **changes) -> ConfigDict:
    """`config.model` of a named model, with 1000 classes unless `changes` has `num_classes`."""
    config = default.get_config(model).model
    with config.unlocked():
        config.num_classes = 1000
        config.update(changes)
    return config


def golden_config(model: str) -> ConfigDict:
    """`config.model` of a model as golden files name it: "b0", "lite3@300" or "edgetpu-S/1001"."""
    name, _, classes = model.partition("/")
    name, _, resolution = name.lower().partition("@")
    changes = {"resolution": int(resolution)} if resolution else {}
    return config_for(name, num_classes=int(classes or 1000), **changes)


def variable_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a model by name, without creating arrays."""
    return shapes_of(models.build(config))


def shapes_of(model: Network) -> dict[str, tuple[int, ...]]:
    size = model.architecture.resolution
    return shapes_by_name(
        jax.eval_shape(lambda: models.init_variables(model, size, jax.random.key(0)))
    )


@pytest.fixture
def tiny() -> ConfigDict:
    """Digits with the smallest network that has every kind of layer, for 2 epochs of 22 steps."""
    config = digits.get_config(TINY)
    config.batch_size = 64
    config.eval_batch_size = 128
    config.epochs = 2.0
    config.log_steps = 10
    config.eval_epochs = 1.0
    config.checkpoint.save_epochs = 0.5
    return config


@pytest.fixture
def quick(tiny) -> ConfigDict:
    """`tiny` with the network that compiles fastest."""
    tiny.model = digits.get_config(QUICK).model
    return tiny


@pytest.fixture
def elsewhere(tmp_path) -> dict:
    """Options for a subprocess in another folder that finds another package named `configs`."""
    decoy = tmp_path / "decoy" / "configs"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("raise AssertionError('imported another configs')\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return {"cwd": folder, "env": {**os.environ, "PYTHONPATH": f"{decoy.parent}:{ROOT}"}}


@pytest.fixture
def one_device(monkeypatch):
    """Makes runs in this process use one of the eight devices, which is faster."""
    data_mesh = parallel.data_mesh
    monkeypatch.setattr(parallel, "data_mesh", lambda: data_mesh(jax.devices()[:1]))
