"""Images held out of ImageNet's training split, to choose settings without the validation images.

Command:   python eval.py --workdir=runs/b0 --data=imagenet_minival [--data_dir=DIR]
Data:      TFDS imagenet2012, split minival: 25,022 images. TFDS doesn't make this split;
           `effnet-jax prepare_imagenet --from=DIR --data_dir=DIR` does. The run must not have
           trained on these images (config.data.train_split).
Metric:    top-1 and top-5.
"""

from effnet_jax.imagenet.variants import evaluation_set


def get_config():
    return evaluation_set("imagenet2012", "minival", 25_022)
