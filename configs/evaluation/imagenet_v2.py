"""ImageNet-V2: new images, collected like ImageNet's validation images (arXiv 1902.10811).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_v2 [--data_dir=DIR]
Argument:  how the 10 images of each class were chosen, by the fraction of people who recognised
           the class: matched-frequency (as in ImageNet, the default), threshold-0.7 (at least 70 %)
           or topimages (the highest), as in --data=imagenet_v2:topimages.
Data:      TFDS imagenet_v2/ARGUMENT, split test: 10,000 images.
Metric:    top-1 and top-5.
"""

from effnet_jax.errors import check_choice
from effnet_jax.imagenet.variants import evaluation_set

VARIANTS = ("matched-frequency", "threshold-0.7", "topimages")


def get_config(variant: str = "matched-frequency"):
    check_choice("variant of imagenet_v2", variant, VARIANTS)
    return evaluation_set(f"imagenet_v2/{variant}", "test", 10_000)
