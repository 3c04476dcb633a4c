"""Your own images: a folder with one sub-folder for each class.

Command:   python train.py --config=configs/folder.py --config.data.data_dir=DIR --workdir=runs/mine
Argument:  the model, as in configs/imagenet.py.
Data:      DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg; or DIR/CLASS/*.jpg, of which a tenth is
           held out for evaluation. The number of classes is taken from the folders.
Hardware:  one GPU at batch 128; on a laptop choose a small model and few pixels, as in
           --config=configs/folder.py:phi=-4 --config.model.resolution=96.
"""

from effnet_jax import config as default


def get_config(model: str = "b0"):
    config = default.get_config(model)
    config.batch_size = 128
    config.eval_batch_size = 128
    config.epochs = 100.0
    config.log_steps = 20
    config.eval_epochs = 1.0
    config.data.source = "folder"
    config.data.name = "folder"
    config.data.exif = "apply"  # Photographs from telephones are stored in any orientation.
    config.data.eval_split = "val"
    return config
