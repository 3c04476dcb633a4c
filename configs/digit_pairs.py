"""Pairs of digits in 100 classes: the data of the scaling study (docs/scaling_study.md).

Command:   python train.py --config=configs/digit_pairs.py --workdir=runs/digit_pairs
Argument:  the model, as in configs/imagenet.py; phi=0 is a network of 7 blocks at 40 px, with
           274,692 parameters.
Hardware:  2 CPU cores; a run of 2,500 steps takes minutes.
Expect:    no result of phi=0 is committed yet: docs/scaling_study.md.
"""

from effnet_jax import config as default


def get_config(model: str = "phi=0"):
    config = default.get_config(model)
    config.batch_size = 32
    config.eval_batch_size = 200
    config.epochs = 5.0  # 2,500 steps.
    config.log_steps = 100
    config.eval_epochs = 0.5

    # One block in every stage at phi=0; larger depths add blocks.
    config.model.base_width, config.model.base_depth = 0.36, 0.25
    config.model.base_resolution = 40
    config.model.survival_probability = 1.0
    config.model.dropout = 0.0
    config.model.batch_norm_momentum = 0.9
    # With classifier and residual branches that start at 0, wide and deep networks learn from the
    # first step.
    config.model.zero_classifier = True
    config.model.zero_residual = True

    config.data.source = "digits"
    config.data.name = "digit_pairs"
    config.data.eval_split = "test"
    config.data.threads = 2
    config.data.check_images = 100

    config.preprocess.mean = (0.1, 0.1, 0.1)
    config.preprocess.std = (0.2, 0.2, 0.2)
    config.preprocess.interpolation = "area"
    config.preprocess.crop_padding = 0
    config.preprocess.crop_area = (0.8, 1.0)
    config.preprocess.flip = False

    config.loss.label_smoothing = 0.0
    config.optimizer.name = "sgd"
    config.optimizer.sgd.learning_rate = 0.4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 0.5
    config.ema.decay = 0.99
    config.checkpoint.save_epochs = 2.5
    config.checkpoint.keep_newest = 1
    return config
