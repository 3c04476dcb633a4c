"""EfficientNet on ImageNet with the reference's recipe.

Command:   python train.py --config=configs/imagenet.py:b0 --workdir=runs/b0
           --config.data.data_dir=DIR [--config.batch_size=4096]
Argument:  a model, or a model, a comma and one of four recipes, as in b0,baseline:
             autoaugment   AutoAugment v0; the default, except for V2
             randaugment   2 operations per image, magnitude 17 for b5, 28 for b7 and b8, else 10
             baseline      crop and flip only
             progressive   EfficientNetV2's recipe, with its stages; the default for v2-s, v2-m,
                           v2-l, v2-xl and v2-b0 to v2-b3, which the others train without stages
           Models are b0 to b8, l2, phi=1.5, or w=1.4,d=1.8,r=380; lite0 to lite4, edgetpu-s, -m
           and -l; V2's; or another base network, scaled or not: mobilenet_v1, mobilenet_v2,
           resnet18 to resnet1001, as in resnet50,phi=1.5.
Data:      imagenet2012 in DIR, from `effnet-jax prepare_imagenet`, or from TFDS as ArrayRecord. The
           former also has the reference's hold-out, to evaluate on instead of the validation
           images: --config.data.train_split='train[25022:]' --config.data.eval_split=minival
           V2's models never train on the hold-out, as in their reference: they train on 1,256,145
           images, 306 steps per epoch at batch 4096.
Fidelity:  docs/fidelity.md lists the differences from the reference.
Hardware:  the reference trained on 32 or more TPU cores with batch 2048 or 4096; V2 on 32 TPUv3
           cores, v2-s in 7.1 hours, v2-m in 13 and v2-l in 24.
Expect:    the reference's published top-1. None of these runs has been repeated here yet:
             baseline      b0 76.7, b1 78.7, b2 79.8, b3 81.1, b4 82.5, b5 83.1
             autoaugment   b0 77.1, b1 79.1, b2 80.1, b3 81.6, b4 82.9, b5 83.6, b6 84.0, b7 84.3
             randaugment   b5 83.7, b7 84.7
             progressive   v2-s 83.9, v2-m 85.2, v2-l 85.7, v2-b0 78.7, v2-b1 79.8, v2-b2 80.5,
                           v2-b3 82.1; none for v2-xl, which is published from ImageNet-21k only
"""

from typing import NamedTuple

import numpy as np

from effnet_jax import config as default
from effnet_jax.errors import UserError

RECIPES = {"autoaugment": "autoaugment", "randaugment": "randaugment", "baseline": "none"}
# The reference's published settings for RandAugment: magnitude by model.
MAGNITUDES = {"b5": 17.0, "b7": 28.0, "b8": 28.0}


class Last(NamedTuple):
    """The settings of the last stage in which a V2 model is trained.

    Attributes:
      resolution: side of the images in pixels.
      magnitude: magnitude of RandAugment; None: AutoAugment in all stages.
      alpha: alpha of mixup and of cutmix.
    """

    resolution: int
    magnitude: float | None
    alpha: float


# google/automl efficientnetv2 (6a54c87), effnetv2_configs.py. The paper (2104.00298, Table 6) has
# other maxima, and its dropout grows too; in the code all stages have the dropout of the model.
V2 = {
    "v2-s": Last(300, 10.0, 0.0),
    "v2-m": Last(384, 15.0, 0.2),
    "v2-l": Last(384, 20.0, 0.5),
    "v2-xl": Last(384, 20.0, 0.5),
    "v2-b0": Last(192, None, 0.0),
    "v2-b1": Last(192, None, 0.0),
    "v2-b2": Last(208, None, 0.0),
    "v2-b3": Last(240, None, 0.0),
}
STAGES = 4
BEFORE = 128  # Pixels; the first stage is one step larger.


def get_config(argument: str = "b0"):
    model, _, recipe = argument.rpartition(",")
    if recipe not in (*RECIPES, "progressive"):
        model, recipe = argument, "progressive" if argument in V2 else "autoaugment"
    elif not model:
        raise UserError(f"{argument!r} names no model; put one before it, as in b0,{recipe}")
    if recipe == "progressive" and model not in V2:
        raise UserError(f"{argument!r}: the recipe progressive is for {', '.join(V2)}")
    try:
        config = default.get_config(model)
    except UserError as error:
        names = ", ".join((*RECIPES, "progressive"))
        raise UserError(f"{error} After a comma: {names}.") from None
    config.model.dtype = "bfloat16"
    if model in V2:
        # As in google/automl efficientnetv2 (6a54c87), hparams.py, datasets.py, main_tf2.py and
        # utils.py: training leaves out the hold-out (25,023 images there, 25,022 here), and biases
        # have no weight decay.
        config.batch_size, config.epoch_steps = 4096, "whole"
        config.data.train_split = "train[25022:]"
        config.optimizer.rmsprop.accumulator = 0.0
        config.model.batch_norm_scope = "reference_v2"
        config.augment.rounding = "truncate"
        config.optimizer.weight_decay_rules = ((r".*/(scale|bias)", 0.0), (r".*", 1.0))
        if V2[model].magnitude is not None:  # preprocessing.py; v2-b0 to v2-b3 keep V1's.
            config.preprocess.interpolation = "bilinear"
            config.preprocess.crop_rule = "whole"
            config.preprocess.crop_area = (0.05, 1.0)
            # TensorFlow's defaults in place of V1's 3/4 to 4/3, 0.1 and 10.
            config.preprocess.crop_aspect = (0.75, 1.33)
            config.preprocess.crop_min_covered = 0.0
            config.preprocess.crop_attempts = 100
    if recipe == "progressive":
        in_stages(config, V2[model])
        return config
    config.augment.policy = RECIPES[recipe]
    if recipe == "randaugment":
        config.augment.randaugment_magnitude = MAGNITUDES.get(model, 10.0)
    return config


def in_stages(config, last: Last) -> None:
    """Sets `config.progressive` and `config.augment` as google/automl's main_tf2.py does.

    The resolution grows from BEFORE by equal steps, rounded down. Magnitude and alphas grow from
    the first stage on.
    """
    shares = np.arange(1, STAGES + 1) / STAGES
    sizes = BEFORE + (last.resolution - BEFORE) * shares
    config.progressive.resolution = tuple(int(size) for size in sizes)
    config.augment.policy = "autoaugment" if last.magnitude is None else "randaugment"
    if last.magnitude is not None:
        config.augment.randaugment_magnitude = last.magnitude
        magnitudes = np.linspace(5, last.magnitude, STAGES)
        config.progressive.randaugment_magnitude = tuple(magnitudes.tolist())
    if last.alpha:
        # datasets.py; a group is the part of 4096 images that each of 32 cores has.
        config.augment.mixing, config.augment.cutmix_labels = "halves", "mean_area"
        config.augment.mix_group = 128
        config.augment.mixup_alpha = config.augment.cutmix_alpha = last.alpha
        alphas = tuple(np.linspace(0, last.alpha, STAGES).tolist())
        config.progressive.mixup_alpha = config.progressive.cutmix_alpha = alphas
