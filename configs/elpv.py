"""Photographs of solar cells, functional or defective: fine-tuning as in configs/folder.py.

Command:   python train.py --config=configs/elpv.py --workdir=runs/cells
               --config.init.weights=runs/lite/lite0.safetensors
           make transfer-study for all of docs/transfer.md.
Argument:  the model, as in configs/imagenet.py; lite0 by default.
Data:      runs/elpv: 2,100 images for training and 524 for the test, of the package elpv-dataset.
           `make runs/lite/ready` makes it, and the weights.
Expect:    docs/transfer.md.
"""

from effnet_jax import config as default
from effnet_jax import experiments


def get_config(model: str = "lite0"):
    config = experiments.read("folder")
    # The network is the experiment's own, so that it can be trained from scratch too.
    named = default.get_config(model)
    config.init.model = "own"
    config.model.update(named.model.to_dict() | {"batch_norm_momentum": 0.9})
    config.model.zero_classifier = True
    config.preprocess.mean, config.preprocess.std = named.preprocess.mean, named.preprocess.std

    config.data.name = "elpv"
    config.data.data_dir = "runs/elpv"
    config.data.threads = 2
    config.steps, config.epochs = None, 6.0
    # The test images choose nothing: one evaluation at the end, of the averaged weights alone.
    config.eval_steps, config.eval_epochs = None, 6.0
    config.evaluations.val.weights = ("ema",)
    config.checkpoint.save_steps, config.checkpoint.save_epochs = None, 1.0
    config.checkpoint.keep_best = 0
    config.schedule.warmup_steps, config.schedule.warmup_epochs = None, 1.0
    # A cell fills its image, and has no up or down. A defect can be anywhere: hardly any crop, and
    # none in the test.
    config.preprocess.interpolation = "bilinear_tf1"  # As the weights, and from scratch too.
    config.preprocess.crop_rule = "whole"
    config.preprocess.crop_area, config.preprocess.crop_aspect = (0.9, 1.0), (1.0, 1.0)
    config.preprocess.flip_vertical = True
    # Six epochs are too few to overfit: with stochastic depth and smoothed labels they underfit.
    config.model.survival_probability = 1.0
    config.loss.label_smoothing = 0.0
    return config
