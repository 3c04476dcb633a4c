"""Photographs of solar cells, functional or defective: fine-tuning as in configs/folder.py.

Command:   python train.py --config=configs/elpv.py --workdir=runs/cells
               --config.init.weights=runs/lite/lite0.safetensors
           `make transfer-study` runs all of docs/transfer.md.
Argument:  the model, as in configs/imagenet.py; lite0 by default.
Data:      runs/elpv, from the package elpv-dataset: 2,100 training images and 524 test images.
           `make runs/lite/ready` writes it, and the weights.
Hardware:  2 CPU cores; the time was not measured on a quiet machine.
Expect:    no finished run has these settings yet. With other crops and more regularisation one
           run reached a top-1 of 84.9 %: docs/transfer.md.
"""

from effnet_jax import config as default
from effnet_jax import experiments


def get_config(model: str = "lite0"):
    config = experiments.read("folder")
    # The experiment chooses the network, so that it can also be trained from scratch.
    named = default.get_config(model)
    config.init.model = "own"
    config.model.update(named.model.to_dict() | {"batch_norm_momentum": 0.9})
    config.model.zero_classifier = True
    config.preprocess.mean, config.preprocess.std = named.preprocess.mean, named.preprocess.std

    config.data.name = "elpv"
    config.data.data_dir = "runs/elpv"
    config.data.threads = 2
    config.steps, config.epochs = None, 6.0
    # No choice uses the test images: the averaged weights are evaluated once, at the end.
    config.eval_steps, config.eval_epochs = None, 6.0
    config.evaluations.val.weights = ("ema",)
    config.checkpoint.save_steps, config.checkpoint.save_epochs = None, 1.0
    config.checkpoint.keep_best = 0
    config.schedule.warmup_steps, config.schedule.warmup_epochs = None, 1.0
    # A cell fills its image, and has no top or bottom. A defect can be anywhere, so training crops
    # very little, and the evaluation nothing.
    config.preprocess.interpolation = "bilinear_tf1"  # As for the weights; also from scratch.
    config.preprocess.crop_rule = "whole"
    config.preprocess.crop_area, config.preprocess.crop_aspect = (0.9, 1.0), (1.0, 1.0)
    config.preprocess.flip_vertical = True
    # Six epochs do not overfit. With stochastic depth and label smoothing they underfit.
    config.model.survival_probability = 1.0
    config.loss.label_smoothing = 0.0
    return config
