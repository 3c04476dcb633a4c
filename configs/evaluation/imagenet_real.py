"""ImageNet's validation images with reassessed labels ("ReaL"), a set each (arXiv 2006.07159).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_real [--data_dir=DIR]
Data:      TFDS imagenet2012_real, split validation: 50,000 images, 46,837 of them with a label.
Metric:    top-1: the prediction is among the image's labels; top-5: one of the five most probable
           classes is. Images without a label are left out. There is no loss.
"""

from effnet_jax.imagenet.variants import evaluation_set


def get_config():
    config = evaluation_set("imagenet2012_real", "validation", 50_000)
    config.data.label = "real_label"
    return config
