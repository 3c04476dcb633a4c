"""ImageNet-R: art, cartoons, sculptures and other renditions (arXiv 2006.16241).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_r [--data_dir=DIR]
Data:      TFDS imagenet_r, split test: 30,000 images of 200 classes, other than ImageNet-A's.
Metric:    top-1 and top-5 among these 200 classes: other outputs of the network are ignored, as
           the authors do (github.com/hendrycks/imagenet-r, eval.py at 3131cac, where
           imagenet_r_classes.txt comes from; github.com/LAION-AI/CLIP_benchmark has the same).
"""

import pathlib

from effnet_jax.imagenet.variants import evaluation_set


def get_config():
    config = evaluation_set("imagenet_r", "test", 30_000)
    classes = pathlib.Path(__file__).with_name("imagenet_r_classes.txt")
    config.data.eval_classes = tuple(classes.read_text().split())
    return config
