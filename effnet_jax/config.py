"""Every key of a config with its meaning, default and limits; `validate` checks a whole config.

The defaults are the reference's training recipe, tensorflow/tpu models/official/efficientnet
(main.py, utils.py): TF-style RMSProp, learning rate 0.016 per 256 images with 5 epochs of warm-up
and x0.97 every 2.4 epochs, L2 1e-5, label smoothing 0.1, an average of the weights with decay
0.9999, 350 epochs. docs/fidelity.md lists what differs. Three of these have a key with the
reference's value: `model.batch_norm_scope="reference"`, `preprocess.interpolation="bicubic_tf1"`
and `augment.rounding="truncate"`.

An experiment (a file in configs/) calls `get_config` and changes what differs. Derived values, such
as the number of steps or the scaled learning rate, are computed where they are used, so overrides
always take effect.
"""

import json
import math
import numbers
import operator
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from effnet_jax import models, parallel, scaling
from effnet_jax.data.preprocess import CROP_RULES, Preprocess
from effnet_jax.data.resizing import INTERPOLATIONS
from effnet_jax.errors import UserError, check_choice
from effnet_jax.models import operations
from effnet_jax.run import buckets, files

# Mean and standard deviation (RGB, of pixels in 0..1) with which published weights were trained.
# For pixels x in 0..255, "127" is (x - 127) / 128, "128" is (x - 128) / 128, and "inception", which
# AdvProp's weights need, is x / 127.5 - 1.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "127": ((127 / 255,) * 3, (128 / 255,) * 3),
    "128": ((128 / 255,) * 3, (128 / 255,) * 3),
    "inception": ((0.5,) * 3, (0.5,) * 3),
}
# What each key of config.progressive replaces in a stage.
PROGRESSIVE = {
    "resolution": "model.resolution",
    "randaugment_magnitude": "augment.randaugment_magnitude",
    "mixup_alpha": "augment.mixup_alpha",
    "cutmix_alpha": "augment.cutmix_alpha",
    "dropout": "model.dropout",
}
# Metrics that can choose the best checkpoint: higher is better.
BEST = ("top1", "top5", "mean_per_class")
FILE = "config.json"  # In a workdir.


class Number(NamedTuple):
    """A number, or a tuple of numbers, from `low` to `high` inclusive; None means not set."""

    default: Any
    low: float = 0
    high: float = math.inf
    kind: type | None = None  # Type of the value if the default is None.

    def check(self, key: str, value: Any) -> None:
        if value is None and (self.default is None or key in DURATIONS):
            return
        values = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(v, (int, float)) and self.low <= v <= self.high for v in values):
            most = f" and at most {self.high}" if self.high != math.inf else ""
            raise UserError(f"config.{key} must be at least {self.low}{most}; got {value}")


class Interval(NamedTuple):
    """Two numbers above 0, in ascending order and at most `high`."""

    default: tuple[float, float]
    high: float = math.inf

    def check(self, key: str, value: Any) -> None:
        try:
            first, last = map(float, value)
        except (TypeError, ValueError):
            text = f"config.{key} must be two numbers, as in '(0.1, 1.0)'; got {value}"
            raise UserError(text) from None
        if not 0 < first <= last <= self.high:
            most = f" and at most {self.high}" if self.high != math.inf else ""
            raise UserError(f"config.{key} must be a range above 0{most}; got {value}")


class Choice(NamedTuple):
    """One of several names, of which the first is the default."""

    options: tuple[str, ...]

    @property
    def default(self) -> str:
        return self.options[0]

    def check(self, key: str, value: Any) -> None:
        check_choice(f"config.{key}", value, self.options)


class Several(NamedTuple):
    """A tuple of names, each one of `options`."""

    default: tuple[str, ...]
    options: tuple[str, ...]

    def check(self, key: str, value: Any) -> None:
        for name in value:
            check_choice(f"config.{key}", name, self.options)


# A bare type stands for a key that is None by default, and has this type if it is set.
SCHEMA = {
    "seed": Number(0, 0, 2**32 - 2),  # Seed of all random numbers, for data and training.
    "batch_size": Number(2048, 1),  # Images per step over all devices and processes.
    "accumulation_steps": Number(1, 1),  # Microbatches into which each batch is split.
    # A duration is set in epochs or in steps; the other key is None.
    "epochs": Number(350.0),  # Length of the run.
    "steps": Number(None, 1, kind=int),
    "fit_batch_size": False,  # True: lowers batch_size to the number of training images.
    # Steps per epoch: exact is records / batch_size; whole rounds it down, as Keras does. The order
    # of the records is the same.
    "epoch_steps": Choice(("exact", "whole")),
    "log_steps": Number(100, 1),  # Steps between log lines, each with progress and metrics.
    "eval_epochs": Number(5.0),  # Epochs between evaluations; the last step also has one.
    "eval_steps": Number(None, 1, kind=int),
    "eval_batch_size": Number(1024, 1),  # Images per evaluation step over all devices.
    "model": {
        # efficientnet, efficientnet_lite, efficientnet_edgetpu, efficientnet_v2 (V2-B0),
        # efficientnet_v2_s, _m, _l or _xl, mobilenet_v1, mobilenet_v2, or resnet18 to resnet1001.
        # The name of a model sets it, together with base_resolution, dropout,
        # survival_probability, batch_norm_momentum, and preprocess.mean and preprocess.std.
        "base": "efficientnet",
        # Compound coefficient, which gives width, depth and resolution; None if these are set.
        "phi": Number(None, -models.MOST_PHI, models.MOST_PHI, float),
        "alpha": scaling.ALPHA,  # Depth is base_depth * alpha ** phi.
        "beta": scaling.BETA,  # Width is base_width * beta ** phi.
        "gamma": scaling.GAMMA,  # Resolution is base_resolution * gamma ** phi.
        "base_resolution": 224,  # Pixels at phi = 0.
        # Width multiplier at phi = 0. 1 is the network in the table of blocks.
        "base_width": 1.0,
        "base_depth": 1.0,  # Depth multiplier at phi = 0.
        "width": Number(None, kind=float),  # Multiplies all filter counts; replaces phi.
        "depth": Number(None, kind=float),  # Multiplies the blocks of all stages; replaces phi.
        "resolution": Number(None, kind=int),  # In pixels; can be set together with phi.
        "dropout": Number(None, 0, 0.999, float),  # None: 0.2 + 0.3 phi / 7, or that of the base.
        "survival_probability": 0.8,  # Stochastic depth: of the last block; linear from 1.
        # 1 suits small images. ResNets then have a 3x3 stem without pooling, as they do for CIFAR.
        "stem_stride": 2,
        # Zero padding: same (TensorFlow's, which published EfficientNets use) or symmetric
        # (PyTorch's). They differ for stride 2 and even sizes, and weights fit only one of them.
        "padding": Choice(operations.PADDINGS),
        "batch_norm_momentum": Number(0.99, 0, 1),  # Fraction of the running statistics kept.
        "batch_norm_epsilon": Number(1e-3, 0, 1),  # Added to the variance.
        # Examples that share BatchNorm's statistics in training. global: the batch, or microbatch;
        # group: `batch_norm_group` consecutive examples; reference: those of a device, or with more
        # than 8 devices those of max(8, devices / 8) devices, as in the reference; reference_v2:
        # those of min(8, devices) devices, as in EfficientNetV2.
        "batch_norm_scope": Choice(("global", "group", "reference", "reference_v2")),
        "batch_norm_group": Number(32, 1),  # In examples; only for the scope "group".
        # block recomputes the inside of each block for its gradient: less memory, more time.
        "remat": Choice(("none", "block")),
        "dtype": Choice(("float32", "bfloat16")),  # Data type of the computation.
        # Set of operations. auto: the fastest one for the platform; plain: lax with automatic
        # differentiation, including forward mode; fused: blocks that move fewer bytes on TPUs;
        # cpu: fast on CPUs, reverse mode only.
        "operations": Choice(("auto", *operations.SETS)),
        # True starts the classifier at 0. The reference draws it with variance 1 / (3 classes) for
        # any number of features, which makes large random logits if there are few classes.
        "zero_classifier": False,
        # True starts the last BatchNorm of each residual branch at scale 0, so that a block starts
        # as the identity (1706.02677, section 5.1), which helps deep networks in short runs.
        # ResNets always start so.
        "zero_residual": False,
        "num_classes": Number(None, 1, kind=int),  # None: as in the data.
    },
    "data": {
        # split_files: a folder of images with the split lists of its authors (data/split_files.py);
        # parquet: a Hugging Face data set on disk; webdataset: tar files.
        "source": Choice(("tfds", "folder", "digits", "split_files", "parquet", "webdataset")),
        "name": "imagenet2012",  # TFDS name: "dataset" or "dataset/config".
        "data_dir": str,  # Folder of the data; None: TFDS's default.
        # TFDS split, or folder under data_dir; docs/data.md for parquet and webdataset.
        "train_split": "train",
        "eval_split": "validation",  # Split or folder for evaluation.
        # Name of the label: the TFDS feature (for evaluation it may be a sequence of correct
        # classes), the column of parquet, or the key in webdataset's .json.
        "label": "label",
        "label_count": Number(None, 1, kind=int),  # Number of classes of integer labels.
        # Name of the image: the TFDS feature, such as "image/encoded" for a nested one, the column
        # of parquet, or webdataset's file extension; "image" accepts any image extension.
        "image": "image",
        "eval_classes": (),  # Names of the classes among which evaluation predicts; (): all.
        # Fraction of each class held out if a folder or split files have no validation split.
        "holdout": Number(0.1, 0.001, 0.5),
        "check_images": Number(1000),  # Images per split decoded before step 1; 0: none.
        # EXIF orientation: ignore, as ImageNet pipelines do, or apply, as image viewers do.
        "exif": Choice(("ignore", "apply")),
        "on_corrupt": Choice(("stop", "skip")),  # If a training image can't be read.
        "threads": Number(16, 1, 1024),  # Threads that read, decode and augment.
        "processes": Number(0, 0, 1024),  # Worker processes with `threads` threads each; 0: none.
        "prefetch_batches": Number(4, 1, 1024),  # Batches prepared ahead of the step.
        "prefetch_gib": Number(4.0, 0.01),  # Maximum memory of these batches.
        # True repeats one random batch with 1,000 classes, to measure the device without loading.
        "synthetic": False,
    },
    "evaluations": {},  # Evaluations by name; see `evaluation`.
    "init": {  # Weights from which a new run starts. A run that resumes doesn't need them.
        # A file, a workdir, a checkpoint, hf://ORG/NAME, or any other source that `weights.load`
        # accepts. Outputs of the classifier are matched by class name, and new classes start at
        # their initial values. None: random weights.
        "weights": str,
        "which": Choice(("ema", "raw")),  # Averaged or raw weights of a run.
        "origin": str,  # Needed if a file doesn't state it; see effnet-jax convert.
        "classes": str,  # Class names, needed if a file doesn't state them.
        # own: the network is the experiment's, and the weights have to fit; weights: network and
        # resolution are those of the weights, unless the experiment sets them.
        "model": Choice(("own", "weights")),
        # weights: crop, resizing and normalisation are those of the weights, except for values that
        # differ from the defaults; own: those of the experiment.
        "preprocess": Choice(("weights", "own")),
        "checksum": str,  # Digest of the arrays; set by the program.
    },
    "preprocess": {
        "mean": (0.0,) * 3,  # RGB, of pixels in 0..1; set by the model's name.
        "std": (1.0,) * 3,  # RGB, of pixels in 0..1; set by the model's name.
        # See effnet_jax/data/resizing.py. The reference uses bicubic_tf1, which takes five times as
        # much CPU time.
        "interpolation": Choice(("bicubic", *(i for i in INTERPOLATIONS if i != "bicubic"))),
        # Crop of evaluation, of the shorter side. padding: the central
        # resolution / (resolution + crop_padding); fraction: the central crop_fraction; resize: the
        # same, cut out after resizing, as timm and torchvision do; squash: like resize, but both
        # sides become equal, as timm does; whole: the whole image, its sides made equal. See
        # effnet_jax/data/preprocess.py.
        "crop_rule": Choice(CROP_RULES),
        "crop_padding": 32,  # In pixels; for the rule padding.
        "crop_fraction": 0.875,  # For the rules fraction, resize and squash.
        "crop_area": Interval((0.08, 1.0), 1),  # Training: area of a random crop.
        "crop_aspect": Interval((3 / 4, 4 / 3)),  # Training: width over height of a crop.
        "crop_min_covered": Number(0.1, 0, 1),  # Crops with less of the image are redrawn.
        "crop_attempts": Number(10, 1, 1000),  # Maximum draws; then evaluation's crop.
        "flip": True,  # Training: mirror left to right, with probability 0.5.
        "flip_vertical": False,  # Training: mirror top to bottom, with probability 0.5.
    },
    "augment": {  # Augmentation of training images, after crop, resize and flip.
        "policy": Choice(("none", "autoaugment", "randaugment")),  # Augmentation policy.
        # Rounding of resized pixels before a policy. The references truncate, which makes images
        # darker by half a grey level.
        "rounding": Choice(("nearest", "truncate")),
        "randaugment_layers": Number(2, 0, 16),  # Operations per image.
        "randaugment_magnitude": Number(10.0, 0, 30),  # Level of all; AutoAugment's maximum is 10.
        # Differences between the reference's operations, which are the default, and Pillow's.
        # Contrast blends with a grey: min(pixels / 256, 255) in the reference; the image's mean.
        "contrast_mean": Choice(("pixel_count", "image")),
        # Posterize shifts by 8 bits at levels below 2.5, and by -1 to -4 from 22.5 on. TensorFlow
        # makes both 7, which leaves one bit; Pillow's rule gives black, and the image unchanged.
        "posterize_shift": Choice(("clamp", "pillow")),
        # Solarize's threshold is 256 at level 10, more above. TensorFlow compares in uint8, where
        # 256 is 0 and inverts everything, and 435 (level 17) is 179; in Pillow no pixel reaches it.
        "solarize_threshold": Choice(("wrap", "no_op")),
        # The reference draws a probability of 0.2 to 0.8 for each operation, but doesn't use it.
        "randaugment_probability": Choice(("ignored", "used")),
        # Cutout (1708.04552): side of a square of noise as a fraction of the image's side; 0.0:
        # none. Its centre is anywhere in the image, and the noise is in the upper half of the grey
        # levels (google/automl efficientnetv2/preprocessing.py, preprocess_for_finetune).
        "cutout": Number(0.0, 0, 1),
        "erase_probability": Number(0.0, 0, 1),  # Random erasing (1708.04896), the last operation.
        "erase_area": Interval((0.02, 1 / 3), 1),  # As a fraction of the image.
        "erase_aspect": Interval((0.3, 3.3)),  # Height over width, log-uniform.
        "erase_fill": Choice(("mean", "noise")),  # config.preprocess.mean, or uniform noise.
        "mixup_alpha": Number(0.0),  # Beta(alpha, alpha) of mixup, on the device; 0.0: none.
        "cutmix_alpha": Number(0.0),  # Beta(alpha, alpha) of cutmix, on the device; 0.0: none.
        # If both are set. drawn: each image draws one of them; halves: in each `mix_group` the
        # first half of the images gets mixup and the second half cutmix, as in EfficientNetV2.
        "mixing": Choice(("drawn", "halves")),
        # Weight of the labels after cutmix: the image's own pasted area, or the mean area over the
        # images with cutmix in its group, as in EfficientNetV2.
        "cutmix_labels": Choice(("own_area", "mean_area")),
        # Consecutive images that are mixed with each other; None: the batch. In the reference they
        # are a device's share of the batch.
        "mix_group": Number(None, 1, kind=int),
    },
    # Progressive learning (2104.00298). Each key has one value per stage, or () to keep the value
    # of the key that it replaces. All keys that are set have the same number of values. Stages are
    # equally long and start at whole epochs. Evaluation uses model.resolution.
    "progressive": {
        "resolution": Number((), 1),  # Of training images, in pixels.
        "randaugment_magnitude": Number((), 0, 30),  # As augment.randaugment_magnitude.
        "mixup_alpha": Number(()),  # As augment.mixup_alpha.
        "cutmix_alpha": Number(()),  # As augment.cutmix_alpha.
        "dropout": Number((), 0, 0.999),  # As model.dropout.
    },
    "loss": {
        # Only in the training loss; evaluation reports cross-entropy without it.
        "label_smoothing": Number(0.1, 0, 0.999),
    },
    "optimizer": {
        "name": Choice(("rmsprop", "sgd", "adamw", "lion")),  # Settings of each are below.
        "sharded": False,  # True splits its state and the averages over the devices.
        # Learning rates are for 256 images per step and are scaled by batch_size / 256.
        "rmsprop": {
            "learning_rate": Number(0.016),  # Peak, for 256 images per step.
            "decay": Number(0.9, 0, 1),  # Decay of the average of squared gradients.
            "momentum": Number(0.9, 0, 1),  # Fraction of the last update added to the next.
            "epsilon": Number(1e-3),  # Added inside the square root.
            "accumulator": Number(1.0),  # Initial value: 1 in TensorFlow 1, 0 in Keras.
            "weight_decay": Number(1e-5),  # Times optimizer.weight_decay_rules.
        },
        "sgd": {
            "learning_rate": Number(0.1),  # Peak, for 256 images per step.
            "momentum": Number(0.9, 0, 1),  # Fraction of the last update added to the next.
            "nesterov": True,  # False: plain momentum.
            "weight_decay": Number(5e-5),  # Times optimizer.weight_decay_rules.
        },
        "adamw": {
            "learning_rate": Number(2.5e-4),  # Peak, for 256 images per step.
            "b1": Number(0.9, 0, 1),  # Decay of the average of gradients.
            "b2": Number(0.999, 0, 1),  # Decay of the average of squared gradients.
            "epsilon": Number(1e-8),  # Added outside the square root.
            "weight_decay": Number(0.05),  # Times optimizer.weight_decay_rules.
        },
        # 2302.06675 advises a 3 to 10 times lower rate than AdamW's, and as much more weight decay.
        "lion": {
            "learning_rate": Number(2.5e-5),  # Peak, for 256 images per step.
            "b1": Number(0.9, 0, 1),  # Weight of the momentum in the update.
            "b2": Number(0.99, 0, 1),  # Decay of the momentum.
            "weight_decay": Number(0.5),  # Times optimizer.weight_decay_rules.
        },
        # Maximum norm of the gradient over all arrays, to which it is scaled down; None: no limit.
        "clip_norm": Number(None, 1e-9, kind=float),
        # Regexes over the slash-joined parameter name; the first full match gives the multiplier.
        "weight_decay_rules": ((r".*norm/(scale|bias)", 0.0), (r".*", 1.0)),
        # A parameter with 0.0 still costs a gradient and optimizer state, unlike one that
        # `fine_tune.freeze` names.
        "learning_rate_rules": ((r".*", 1.0),),
    },
    "fine_tune": {
        # Parameters that are not trained, separated by spaces: parts of the network, such as stem,
        # stage3, head or stem..stage4, or regexes that match the whole slash-joined name.
        "freeze": "",
        # Statistics of BatchNorm in training. train: the batch's; frozen: the running statistics,
        # which don't change; frozen_below: frozen in the parts whose parameters are all frozen.
        "batch_norm": Choice(("train", "frozen", "frozen_below")),
        "head_rate": Number(1.0),  # Multiplies the classifier's learning rate.
        # Multiplies the rate once for each block between a parameter and the classifier.
        "layer_decay": Number(1.0, 1e-9, 1),
        # Time at the start in which only the classifier is trained, on frozen features
        # (2202.10054). Warm-up and decay then start again.
        "head_epochs": Number(0.0),
        "head_steps": Number(None, 0, kind=int),
        "head_done": False,  # Whether this time is over; set by the program.
    },
    "schedule": {
        "name": Choice(("staircase", "cosine", "constant")),  # Decay after the warm-up.
        "warmup_epochs": Number(5.0),  # Linear from 0.
        "warmup_steps": Number(None, 0, kind=int),
        "min_rate": Number(0.0, 0, 1),  # The decay ends at this fraction of the peak.
        "decay_rate": Number(0.97, 1e-9, 1),  # Staircase: factor of each stair.
        "decay_epochs": Number(2.4, 1e-9),  # Staircase: length of a stair, from step 0.
        "decay_steps": Number(None, 1, kind=int),
    },
    "ema": {
        # The decay at update n is min(decay, (1 + n) / (10 + n)); 0.0: no averaging.
        "decay": Number(0.9999, 0, 1),
        # Replaces decay by 1 - 1 / n, where n is this fraction of the run's steps.
        "fraction": Number(None, 0.0001, 1, kind=float),
    },
    "checkpoint": {
        "save_epochs": Number(1.0),  # Epochs between saves; each evaluation saves too.
        "save_steps": Number(None, 1, kind=int),
        "keep_newest": Number(2, 1),  # Number of newest checkpoints to keep.
        "keep_best": Number(1),  # Number of best checkpoints to keep, of any age.
        "best_metric": "val/ema/top1",  # EVALUATION/WEIGHTS/METRIC; top1, top5 or mean_per_class.
        "resume": Choice(("auto", "never")),  # never: the workdir must be empty.
    },
    "early_stopping": {
        # Evaluations without a rise of `checkpoint.best_metric` that end a run; 0: never.
        "patience": Number(0),
    },
    "nonfinite": {  # A loss, gradient or weight that is NaN or infinite.
        # rollback returns to the last checkpoint and skips the data of the steps since then.
        "action": Choice(("stop", "rollback")),
        "max_rollbacks": Number(3),  # Maximum number of roll-backs in a run.
    },
    # Metric writers in addition to metrics.jsonl and the console: tensorboard, wandb, mlflow.
    "writers": Several(("tensorboard",), ("tensorboard", "wandb", "mlflow")),
    "notify": {
        # Program that is called with an event and a message. Events: `stop`, the run has ended or
        # was stopped; `loss`, the loss was not finite; `alarm`, no checkpoint can be saved, or a
        # process makes the others wait. "": none.
        "command": "",
    },
    "profile": {
        # Steps to trace, as FIRST:STOP: "100:105" traces steps 100 to 104; "": none. SIGUSR1 starts
        # a trace in a running process. See docs/slow_runs.md.
        "steps": "",
    },
    # Devices form a mesh of data x model. The batch is split over all devices, and parameters,
    # optimizer state and averages over `model`, each along its longest divisible axis (FSDP).
    "mesh": {
        "data": Number(None, 1, kind=int),  # None: number of devices / model.
        "model": Number(1, 1),  # 1: every device has all parameters.
    },
    "processes": {  # How long processes of a run wait for each other.
        "start_seconds": Number(1800.0, 1),  # While they start, restore and compile.
        "stall_seconds": Number(600.0, 1),  # Without a step, or a batch of an evaluation.
        "lost_seconds": Number(60.0, 3, 150),  # Without a heartbeat: suspended, dead or cut off.
    },
}
# Keys of durations in epochs, and the same in steps.
DURATIONS = {
    "epochs": "steps",
    "eval_epochs": "eval_steps",
    "schedule.warmup_epochs": "schedule.warmup_steps",
    "schedule.decay_epochs": "schedule.decay_steps",
    "checkpoint.save_epochs": "checkpoint.save_steps",
    "fine_tune.head_epochs": "fine_tune.head_steps",
}
EVALUATION = {
    "epochs": Number(None, kind=float),  # Epochs between evaluations; None: config.eval_epochs.
    "weights": ("raw", "ema"),  # Weights that are evaluated.
    "data": {},  # Changes of config.data, such as {"eval_split": "minival"}.
    "preprocess": {},  # Changes of config.preprocess.
}


def evaluation(
    weights: tuple[str, ...] = ("raw", "ema"), epochs: float | None = None, **data: Any
) -> ConfigDict:
    """Returns an entry of `config.evaluations`, whose results are named NAME/WEIGHTS/METRIC.

    Example: `config.evaluations.minival = evaluation(epochs=1.0, eval_split="minival")`. For
    `weights` and `epochs` see EVALUATION; `data` has the changes of `config.data`.
    """
    entry = _build(EVALUATION)
    entry.weights, entry.epochs = tuple(weights), epochs
    entry.data.update(data)
    return entry


def _build(schema: dict[str, Any]) -> ConfigDict:
    config = ConfigDict()
    for key, value in schema.items():
        if isinstance(value, dict):
            config[key] = _build(value)
        elif isinstance(value, type) or getattr(value, "default", 0) is None:
            config[key] = config_dict.placeholder(getattr(value, "kind", value))
        elif key.endswith("epochs"):  # None, where there are steps, keeps the type.
            config[key] = config_dict.FieldReference(value.default, field_type=float)
        else:
            config[key] = value.default if hasattr(value, "default") else value
    return config


def get_config(model: str = "b0") -> ConfigDict:
    """Returns the defaults for a model, such as b0, lite4, edgetpu-s, v2-m, phi=1.5, resnet50,
    w=1.2,d=1.4,r=291 or mobilenet_v2,phi=1.5; see `models.parse_variant`.
    """
    config = _build(SCHEMA)
    config.evaluations.val = evaluation()
    config.model.update(models.parse_variant(model))
    normalization = models.base(config.model.base).normalization
    config.preprocess.mean, config.preprocess.std = NORMALIZATIONS[normalization]
    config.lock()
    config.evaluations.unlock()  # Experiments add theirs.
    return config


def load(path: str | pathlib.Path) -> ConfigDict:
    """The config in a JSON file or in a workdir; a key that is newer than it has its default.

    Raises UserError if there is no such file, or `save` didn't write it.
    """
    path = buckets.to_path(path)
    is_file, workdir = path.suffix == ".json", path
    if not is_file:
        path = path / FILE
    try:
        return _from_dict(files.read_json(path))
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not is_file:
            text = f"no run in {workdir}: {path} is missing; is --workdir right?"
            raise UserError(text) from None
        raise UserError(f"can't read a config from {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is no config that this program wrote: {error}") from None


def load_if_any(workdir: str | pathlib.Path) -> ConfigDict | None:
    """The config in a workdir, as `load`; None if there is none."""
    path = buckets.to_path(workdir) / FILE
    return load(path) if files.is_file(path) else None


def _from_dict(values: dict[str, Any]) -> ConfigDict:
    values = _with_tuples(values)
    config, evaluations = get_config(), values.pop("evaluations", {"val": {}})
    values["model"]["base"], values["data"]["name"]  # Raises for JSON that is no config.
    for key in ("init_from", "init_weights"):  # Now in the section init.
        values["checkpoint"].pop(key, None)
    config.update(values)
    del config.evaluations.val
    for name, entry in evaluations.items():
        config.evaluations[name] = evaluation()
        config.evaluations[name].update(entry)
    return config


def _with_tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(each) for key, each in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes a config for `load`, atomically."""
    files.write_json(path, to_dict(config))


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A config as what `load` reads: nested values that JSON has."""
    return json.loads(config.to_json_best_effort())


def changes(old: dict, new: dict, prefix: str = "config") -> list[str]:
    """`key: old -> new` for every value that differs between two nested dicts."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += changes(before, after, f"{prefix}.{key}")
        elif before != after:
            lines.append(f"{prefix}.{key}: {before} -> {after}")
    return lines


def short_names(keys: Collection[str]) -> list[str]:
    """The last part of each dotted key, or all of it where several end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def for_evaluation(config: ConfigDict, name: str) -> ConfigDict:
    """The whole config as evaluation `name` sees it: its own data and preprocessing in place."""
    entry = config.evaluations[name]
    config = config.copy_and_resolve_references()
    for section in ("data", "preprocess"):
        try:
            config[section].update(entry[section])
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"config.evaluations.{name}.{section}: {error}") from None
    return config


def stages(config: ConfigDict) -> list[ConfigDict]:
    """The whole config as it is in each progressive stage; itself alone where there are none.

    Raises UserError where `config.progressive` has values for different numbers of stages.
    """
    given = {key: config.progressive[key] for key in PROGRESSIVE if config.progressive[key]}
    head = config.fine_tune.head_epochs or config.fine_tune.head_steps
    if head and not config.fine_tune.head_done:
        if given:
            raise UserError(f"{head_key(config)}={head} and config.progressive both make stages")
        rest = config.copy_and_resolve_references()
        rest.fine_tune.head_done = True
        return [config, rest]
    lengths = {key: len(values) for key, values in given.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(
            f"config.progressive has values for different numbers of stages: {listed}; give each "
            "key as many, or none, (), to keep the run's own value in all stages"
        )
    if odd := [size for size in config.progressive.resolution if size != int(size)]:
        raise UserError(f"config.progressive.resolution must be whole pixels; got {odd[0]}")
    result = []
    for values in zip(*given.values(), strict=True):
        stage = config.copy_and_resolve_references()
        for key, value in zip(given, values, strict=True):
            kind = int if key == "resolution" else float
            stage.update_from_flattened_dict({PROGRESSIVE[key]: kind(value)})
        result.append(stage)
    return result or [config]


def head_key(config: ConfigDict) -> str:
    """The key, of two, that has the length of the stage in which the classifier is trained."""
    return f"config.fine_tune.head_{'steps' if config.fine_tune.head_steps else 'epochs'}"


def validate(config: ConfigDict, devices: int | None = None) -> None:
    """Raises a UserError that names the first key whose value can't work, before any compute.

    `devices` are those that the run will have, if known: batches have to divide among them.
    """
    _check_finite("config", config.to_dict())
    files.check_local("config.data.data_dir", config.data.data_dir or "")
    check_init(config)
    for key, limit in _limits(SCHEMA):
        limit.check(key, operator.attrgetter(key)(config))
    _check_durations(config)
    _check_evaluations(config)
    Preprocess.from_config(config.preprocess, resolution=1)
    for rules in ("weight_decay_rules", "learning_rate_rules"):
        for pattern, _ in config.optimizer[rules]:
            try:
                re.compile(pattern)
            except re.error as error:
                where = f"config.optimizer.{rules}: bad regular expression"
                raise UserError(f"{where} {pattern!r}: {error}") from None
    _check_model("", config)
    for number, stage in enumerate(stages(config), 1):
        _check_model(f"stage {number} of config.progressive: ", stage)
        _check_mixing(stage)
    if devices is not None:
        parallel.check_batch("batch_size", config.batch_size, devices, config.accumulation_steps)
        parallel.check_batch("eval_batch_size", config.eval_batch_size, devices)
        parallel.batch_norm_group(config, devices)


def _limits(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if isinstance(value, dict):
            yield from _limits(value, f"{prefix}{key}.")
        elif hasattr(value, "check"):
            yield f"{prefix}{key}", value


def _check_durations(config: ConfigDict) -> None:
    for keys in DURATIONS.items():
        values = [operator.attrgetter(key)(config) for key in keys]
        if sum(value is not None for value in values) != 1:
            found = " and ".join(f"config.{k}={v}" for k, v in zip(keys, values, strict=True))
            raise UserError(f"{found}: give one of the two; None unsets the other")


def check_init(config: ConfigDict) -> None:
    """Raises a UserError for a value of `config.init` that can't work."""
    for key, limit in _limits(SCHEMA["init"], "init."):
        limit.check(key, operator.attrgetter(key)(config))
    source = config.init.weights or ""
    if not source.startswith("hf://") and not buckets.is_bucket(source):
        files.check_local("config.init.weights", source)
    if config.init.model == "weights" and not source:
        raise UserError(
            "config.init.weights is not set, and the network would be theirs: give "
            "--config.init.weights=FILE, or name a model to train from scratch, as in "
            "--config=EXPERIMENT:b0"
        )


def replaced(keys: Collection[str]) -> list[str]:
    """The other keys of the durations among `keys`, which these values replace."""
    pairs = [*DURATIONS.items(), *((steps, epochs) for epochs, steps in DURATIONS.items())]
    return [other for key, other in pairs if key in keys and other not in keys]


def _check_finite(key: str, value: Any) -> None:
    if isinstance(value, dict):
        for name, each in value.items():
            _check_finite(f"{key}.{name}", each)
    elif isinstance(value, tuple | list):
        for each in value:
            _check_finite(key, each)
    elif isinstance(value, numbers.Real) and not abs(value) < math.inf:
        raise UserError(f"{key} must be finite; got {value}")


def _check_evaluations(config: ConfigDict) -> None:
    for name, entry in config.evaluations.items():
        where = f"evaluations.{name}"
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise UserError(f"config.{where}: a name has letters, digits, _, . and - alone")
        if unknown := sorted(entry.keys() - EVALUATION.keys()):
            raise UserError(f"config.{where} has no key {unknown[0]!r}; it has {list(EVALUATION)}")
        EVALUATION["epochs"].check(f"{where}.epochs", entry.epochs)
        for weights in entry.weights:
            check_choice(f"config.{where}.weights", weights, ("raw", "ema"))
        own = for_evaluation(config, name)
        Preprocess.from_config(own.preprocess, resolution=1)
        files.check_local(f"config.{where}.data.data_dir", own.data.data_dir or "")
    names = [
        f"{name}/{weights}/{metric}"
        for name, entry in config.evaluations.items()
        for weights in entry.weights
        for metric in BEST
    ]
    patience = config.early_stopping.patience
    if patience and not names:
        raise UserError(
            f"config.early_stopping.patience={patience} needs one of config.evaluations"
        )
    if names and (config.checkpoint.keep_best or patience):
        check_choice("config.checkpoint.best_metric", config.checkpoint.best_metric, names)


def _check_mixing(config: ConfigDict) -> None:
    augment, batch = config.augment, config.batch_size
    alphas, group = (augment.mixup_alpha, augment.cutmix_alpha), augment.mix_group or batch
    if max(alphas) > 0 and batch % group:
        raise UserError(
            f"config.batch_size={batch} is not divisible by config.augment.mix_group={group}; a "
            f"group that divides it: {math.gcd(batch, group)}"
        )
    if min(alphas) > 0 and augment.mixing == "halves" and group % 2:
        key = "batch_size" if augment.mix_group is None else "augment.mix_group"
        raise UserError(
            f"config.augment.mixing='halves' halves config.{key}={group}; make it even, or use "
            "'drawn'"
        )


def _check_model(where: str, config: ConfigDict) -> None:
    model = config.model.copy_and_resolve_references().unlock()
    model.num_classes = model.num_classes or 1  # The data's, where it isn't set.
    try:
        models.build(model)
    except UserError as error:
        raise UserError(f"{where}{error}") from None
