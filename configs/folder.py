"""Your own images: a folder with a subfolder for each class.

Command:   python train.py --config=configs/folder.py --config.data.data_dir=DIR
               --config.init.weights=lite0.safetensors --workdir=runs/mine
Argument:  none, to fine-tune weights with their network and preprocessing; or a model, as in
           configs/imagenet.py, to train it from scratch: --config=configs/folder.py:b0
Data:      DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg; or DIR/CLASS/*.jpg, a tenth of which is
           held out for evaluation. The number of classes is the number of folders.
Hardware:  a GPU or a laptop: fine-tuning Lite0 at 224 px takes about ten minutes on two cores. To
           train from scratch on a laptop, choose a small model and a low resolution:
           --config=configs/folder.py:phi=-4 --config.model.resolution=96.
Expect:    this depends on your images; `effnet-jax probe` gives a first estimate in seconds.
"""

from effnet_jax import config as default


def get_config(model: str | None = None):
    config = default.get_config(model or "phi=0")
    config.log_steps = 20
    config.eval_batch_size = 128
    config.data.source = "folder"
    config.data.name = "folder"
    config.data.exif = "apply"  # Phones store photographs in any orientation.
    config.data.eval_split = "val"
    if model:
        config.batch_size = 128
        config.epochs = 100.0
        config.eval_epochs = 1.0
        return config

    # Fine-tuning on 100 to 10,000 images. Lengths are in steps: small sets have short epochs.
    config.init.model = "weights"
    config.batch_size = 32
    config.fit_batch_size = True
    config.epochs, config.steps = None, 500
    config.eval_epochs, config.eval_steps = None, 125
    config.checkpoint.save_epochs, config.checkpoint.save_steps = None, 125
    config.model.batch_norm_momentum = 0.9  # Replaces the old statistics within 500 steps.
    config.model.zero_classifier = True
    config.optimizer.name = "sgd"
    config.optimizer.sgd.learning_rate = 0.16  # 0.02 at 32 images.
    config.optimizer.sgd.weight_decay = 1e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs, config.schedule.warmup_steps = None, 20
    config.preprocess.crop_area = (0.25, 1.0)
    config.ema.fraction = 0.1  # Averages over 50 steps; a decay of 0.9999 over 10,000.
    return config
