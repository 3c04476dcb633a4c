"""EfficientNet on ImageNet by the reference's recipe.

Command:   python train.py --config=configs/imagenet.py:b0 --workdir=runs/b0
           --config.data.data_dir=DIR [--config.batch_size=4096]
Argument:  a model, and with a comma one of three recipes, as in b0,baseline or b5,randaugment:
             autoaugment   AutoAugment v0; where none is named
             randaugment   2 operations an image, magnitude 17 for b5, 28 for b7 and b8, else 10
             baseline      crop and flip alone
           Models are b0 to b8, l2, phi=1.5, or w=1.4,d=1.8,r=380; or another base network, scaled
           or not: mobilenet_v1, mobilenet_v2, resnet18 to resnet1001, as in resnet50,phi=1.5.
Data:      imagenet2012 in DIR, written by python -m effnet_jax.tools.prepare_imagenet, or by TFDS
           as ArrayRecord. With the former, the reference's hold-out instead of the validation
           images: --config.data.train_split='train[25022:]' --config.data.eval_split=minival
Hardware:  the reference trained on 32 or more TPU cores, batch 2048 or 4096.
Expect:    the reference's published top-1, of which this repository has run none yet:
             baseline      b0 76.7, b1 78.7, b2 79.8, b3 81.1, b4 82.5, b5 83.1
             autoaugment   b0 77.1, b1 79.1, b2 80.1, b3 81.6, b4 82.9, b5 83.6, b6 84.0, b7 84.3
             randaugment   b5 83.7, b7 84.7
"""

from configs import default
from effnet_jax.errors import UserError

RECIPES = {"autoaugment": "autoaugment", "randaugment": "randaugment", "baseline": "none"}
# The reference's published settings for RandAugment: magnitude by model.
MAGNITUDES = {"b5": 17.0, "b7": 28.0, "b8": 28.0}


def get_config(argument: str = "b0"):
    model, _, recipe = argument.rpartition(",")
    if recipe not in RECIPES:
        model, recipe = argument, "autoaugment"
    elif not model:
        raise UserError(f"{argument!r} names no model; write one before it, as in b0,{recipe}")
    try:
        config = default.get_config(model)
    except UserError as error:
        raise UserError(f"{error} After a comma: {', '.join(RECIPES)}.") from None
    config.model.dtype = "bfloat16"
    config.augment.policy = RECIPES[recipe]
    if recipe == "randaugment":
        config.augment.randaugment_magnitude = MAGNITUDES.get(model, 10.0)
    return config
