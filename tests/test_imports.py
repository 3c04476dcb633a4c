"""Importing any module of the package leaves the process as it was."""

import json
import os
import subprocess
import sys

from conftest import ROOT

# In a fresh interpreter: JAX, OpenCV, tensorboardX and NumPy set variables or filters themselves.
SCRIPT = """
import importlib, json, logging, os, pathlib, signal, sys, threading, warnings
import absl.logging, cv2, jax, matplotlib.pyplot, numpy, PIL.Image, PIL.ImageFile, tensorboardX
from ml_collections.config_flags import config_flags

def settings():
    found = {f"environ {key}": value for key, value in os.environ.items()}
    found |= {f"jax {key}": value for key, value in jax.config.values.items()}
    found |= {f"matplotlib {key}": value for key, value in matplotlib.rcParams.items()}
    found |= {f"flags {key}": value for key, value in config_flags._FIELD_TYPE_TO_PARSER.items()}
    for number in signal.valid_signals():
        found[f"signal {number}"] = signal.getsignal(number)
    for name in [None, *logging.Logger.manager.loggerDict]:
        logger = logging.getLogger(name)
        state = logger.handlers, logger.filters, logger.level, logger.disabled
        if name is None or state != ([], [], 0, False):
            found[f"logging {name}"] = state
    found["logging class"] = logging.getLoggerClass(), logging.getLogRecordFactory()
    found["absl"] = absl.logging.get_verbosity()
    found["numpy"] = numpy.geterr(), numpy.get_printoptions(), numpy.random.get_state()[1][:4]
    found["warnings"] = warnings.filters, warnings.showwarning
    found["matplotlib backend"] = matplotlib.get_backend()
    found["cv2"] = cv2.getNumThreads(), cv2.ocl.useOpenCL(), cv2.useOptimized()
    found["pillow"] = PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    found["python"] = sys.excepthook, threading.excepthook, sys.getrecursionlimit(), sys.path
    found["threads"] = [thread.name for thread in threading.enumerate()]
    found["folder"] = os.getcwd()
    return {key: str(value) for key, value in found.items()}

root, before, changes, names = pathlib.Path(sys.argv[1]), settings(), [], []
for path in sorted(root.glob("effnet_jax/**/*.py")):
    names.append(".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
    importlib.import_module(names[-1])
    now = settings()
    keys = sorted(key for key in before | now if before.get(key) != now.get(key))
    changes += [f"{names[-1]}: {key}: {before.get(key)} -> {now.get(key)}" for key in keys]
    before = now
print(json.dumps([names, changes]))
"""


def test_importing_any_module_changes_nothing_in_the_process():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ROOT)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    names, changes = json.loads(result.stdout)
    assert {"effnet_jax", "effnet_jax.run.processes", "effnet_jax.tools.train"} < {*names}
    assert not changes, "\n".join(changes)
