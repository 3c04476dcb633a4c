"""EfficientNet on ImageNet by the reference's recipe, without AutoAugment ("baseline").

Command:   python train.py --config=configs/imagenet.py:b0 --workdir=runs/b0
           --config.data.data_dir=DIR [--config.batch_size=4096]
Argument:  b0 to b8, l2, phi=1.5, or w=1.4,d=1.8,r=380; or another base network, scaled or not:
           mobilenet_v1, mobilenet_v2, resnet18 to resnet1001, as in resnet50 or resnet50,phi=1.5.
Data:      imagenet2012 in DIR, written by tools/prepare_imagenet.py or by TFDS as ArrayRecord.
Hardware:  the reference trained on 32 or more TPU cores, batch 2048 or 4096.
Expect:    the reference's published baseline top-1: b0 76.7, b1 78.7, b2 79.8, b3 81.1, b4 82.5,
           b5 83.1. This repository has not run it yet, so no hours are given.
"""

from configs import default


def get_config(model: str = "b0"):
    config = default.get_config(model)
    config.model.dtype = "bfloat16"
    return config
