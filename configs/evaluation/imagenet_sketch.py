"""ImageNet-Sketch: black and white drawings, about 50 of each class (arXiv 1905.13549).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_sketch [--data_dir=DIR]
Data:      TFDS imagenet_sketch, split test: 50,889 images.
Metric:    top-1 and top-5.
"""

from effnet_jax.imagenet.variants import evaluation_set


def get_config():
    return evaluation_set("imagenet_sketch", "test", 50_889)
