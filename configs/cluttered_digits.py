"""A very small EfficientNet (phi = -9) on cluttered digits: the base network of the scaling study.

Command:   python train.py --config=configs/cluttered_digits.py --workdir=runs/cluttered_digits
Argument:  the model, as in configs/imagenet.py. At phi=-9: 303,824 parameters, 36 px.
Hardware:  one core of an AMD EPYC: 1 to 2 minutes.
Expect:    top-1 of 84.3 to 87.6 % on 2,000 images with averaged weights (three seeds, base of
           results/scaling_study/methods.csv).
"""

from effnet_jax import config as default


def get_config(model: str = "phi=-9"):
    config = default.get_config(model)
    config.batch_size = 64
    config.eval_batch_size = 200
    config.epochs = 5.0
    config.log_steps = 125
    config.eval_epochs = 5.0

    config.model.base_resolution = 127  # 36 px at phi = -9.
    config.model.survival_probability = 1.0  # Runs are too short to overfit.
    config.model.batch_norm_momentum = 0.9
    # With a random classifier, wide networks spent most of the run correcting their first logits.
    config.model.zero_classifier = True

    config.data.source = "digits"
    config.data.name = "cluttered_digits"
    config.data.eval_split = "test"
    config.data.threads = 2
    config.data.check_images = 100

    config.preprocess.mean = (0.1, 0.1, 0.1)
    config.preprocess.std = (0.2, 0.2, 0.2)
    config.preprocess.interpolation = "area"
    config.preprocess.crop_padding = 0
    config.preprocess.crop_area = (0.7, 1.0)
    config.preprocess.flip = False

    config.loss.label_smoothing = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.sgd.learning_rate = 0.2
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 0.5
    config.ema.decay = 0.99
    config.checkpoint.save_epochs = 2.5
    config.checkpoint.keep_newest = 1
    return config
