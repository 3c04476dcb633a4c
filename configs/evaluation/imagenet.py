"""ImageNet's validation images, 50 of each class (arXiv 1409.0575).

Command:   python eval.py --workdir=runs/b0 --data=imagenet [--data_dir=DIR]
Data:      TFDS imagenet2012, split validation: 50,000 images.
Metric:    top-1 and top-5.
"""

from effnet_jax.imagenet.variants import evaluation_set


def get_config():
    return evaluation_set("imagenet2012", "validation", 50_000)
