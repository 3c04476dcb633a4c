"""ImageNet-A: natural photographs that a ResNet-50 got wrong (arXiv 1907.07174).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_a [--data_dir=DIR]
Data:      TFDS imagenet_a, split test: 7,500 images of 200 classes.
Metric:    top-1 and top-5 among these 200 classes: other outputs of the network are ignored, as
           the authors do (github.com/hendrycks/natural-adv-examples, eval.py at 0777070, where
           imagenet_a_classes.txt comes from; github.com/LAION-AI/CLIP_benchmark has the same).
"""

import pathlib

from effnet_jax.imagenet.variants import evaluation_set


def get_config():
    config = evaluation_set("imagenet_a", "test", 7_500)
    classes = pathlib.Path(__file__).with_name("imagenet_a_classes.txt")
    config.data.eval_classes = tuple(classes.read_text().split())
    return config
