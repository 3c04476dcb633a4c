"""Every key with its meaning, and the reference's training recipe as the values.

Experiments start from here and change what differs. The recipe is tensorflow/tpu
models/official/efficientnet (main.py, utils.py): TF-style RMSProp, learning rate 0.016 for each 256
images with 5 epochs of warm-up and x0.97 every 2.4 epochs, L2 1e-5, label smoothing 0.1,
an average of the weights with decay 0.9999, 350 epochs. One thing differs: BatchNorm's statistics
are those of the global batch; model.batch_norm_scope "reference" takes them as the reference does.

Nothing derived is stored: steps, the scaled learning rate, and width, depth and resolution from phi
are computed where they are used, so that an override on the command line is never stale.
"""

from ml_collections import ConfigDict, config_dict

from effnet_jax import models, scaling

# Mean and standard deviation (RGB, of pixels in 0..1) that a base network's published weights were
# trained with: ImageNet's own, (x - 127) / 128, (x - 128) / 128, or x / 127.5 - 1 (AdvProp's, and
# what timm writes for the two before) of pixels in 0..255.
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "127": ((127 / 255,) * 3, (128 / 255,) * 3),
    "128": ((128 / 255,) * 3, (128 / 255,) * 3),
    "inception": ((0.5,) * 3, (0.5,) * 3),
}


def get_config(model: str = "b0") -> ConfigDict:
    """The defaults, for a model by name or coefficients.

    As in b0, lite4, edgetpu-s, v2-m, phi=1.5, w=1.2,d=1.4,r=291, resnet50, or mobilenet_v2,phi=1.5:
    see `models.parse_variant`.
    """
    config = ConfigDict()
    config.seed = 0  # All randomness, of data and of training, follows from it.
    config.batch_size = 2048  # Images a step, over all devices and hosts.
    config.accumulation_steps = 1  # Parts that a step's batch is computed in, one after the other.
    config.epochs = 350.0  # Length of the run.
    config.log_steps = 100  # Steps between two lines of progress and metrics.
    config.eval_epochs = 5.0  # Epochs between two evaluations; there is always one at the end.
    config.eval_batch_size = 1024

    config.model = ConfigDict()
    # efficientnet, efficientnet_lite, efficientnet_edgetpu, efficientnet_v2 (its B0), the same with
    # _s, _m, _l and _xl, mobilenet_v1, mobilenet_v2, or resnet18 to resnet1001. The model's name
    # sets it, with its own base_resolution, dropout, survival_probability, batch_norm_momentum, and
    # the mean and std of config.preprocess.
    config.model.base = "efficientnet"
    # Either phi, which gives width, depth and resolution by the law, or these three.
    config.model.phi = config_dict.placeholder(float)
    config.model.alpha = scaling.ALPHA  # Depth is base_depth * alpha ** phi.
    config.model.beta = scaling.BETA  # Width is base_width * beta ** phi.
    config.model.gamma = scaling.GAMMA  # Resolution is base_resolution * gamma ** phi.
    config.model.base_resolution = 224  # Pixels at phi = 0.
    config.model.base_width = 1.0  # Coefficients at phi = 0; others where a smaller or larger
    config.model.base_depth = 1.0  # network than the table's is the base, as after a grid search.
    config.model.width = config_dict.placeholder(float)
    config.model.depth = config_dict.placeholder(float)
    config.model.resolution = config_dict.placeholder(int)  # Pixels; may be set beside phi.
    config.model.dropout = config_dict.placeholder(float)  # None: 0.2 + 0.3 phi / 7, or the base's.
    config.model.survival_probability = 0.8  # Of the last block; stochastic depth, linear by block.
    # 1 for small images. ResNet then has a 3x3 stem without pooling, as all its small forms do.
    config.model.stem_stride = 2
    # Zeros around an image: same (TensorFlow's, and so all published EfficientNets'), or symmetric
    # (PyTorch's). They differ under stride 2 and even sizes; weights belong to one of them.
    config.model.padding = "same"
    config.model.batch_norm_momentum = 0.99  # Fraction of the running statistics that is kept.
    config.model.batch_norm_epsilon = 1e-3
    # Who shares BatchNorm's statistics in training: global, the batch (or its part, where it is
    # computed in parts); group, so many examples in a row; or reference, the reference's rule: each
    # device alone up to 8 devices, else groups of max(8, devices / 8) devices.
    config.model.batch_norm_scope = "global"
    config.model.batch_norm_group = 32  # Examples; for the scope "group" alone.
    # block: what is inside a block is computed again for its gradient. Less memory, more time.
    config.model.remat = "none"  # none or block.
    config.model.dtype = "float32"  # Of the computation: float32 or bfloat16.
    # The reference's first weights have variance 1 / (3 classes), whatever the features: with few
    # classes that makes large random logits, the larger the wider the network. True: start at 0.
    config.model.zero_classifier = False
    config.model.num_classes = config_dict.placeholder(int)  # None: as many as the data has.
    config.model.update(models.parse_variant(model))

    config.data = ConfigDict()
    config.data.source = "tfds"  # tfds, folder or digits.
    config.data.name = "imagenet2012"  # TFDS name, "dataset" or "dataset/config".
    config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's own default.
    config.data.train_split = "train"  # TFDS split, or folder under data_dir.
    config.data.eval_split = "validation"
    # The TFDS feature that is the class; for evaluation alone also a sequence of right classes.
    config.data.label = "label"
    config.data.eval_classes = ()  # The classes, by name, that evaluation chooses from; (): all.
    config.data.holdout = 0.1  # Folder without splits: fraction of each class kept for evaluation.
    config.data.check_images = 1000  # Images of each split decoded before the first step; 0: none.
    config.data.on_corrupt = "stop"  # A training image that can't be read: stop, or skip it.
    config.data.threads = 16  # That read, decode and augment.
    config.data.processes = 0  # Worker processes for training, each with so many threads; 0: none.
    config.data.prefetch_batches = 4  # Most that lie ready or in work, ahead of the step, ...
    config.data.prefetch_gib = 4.0  # ... and the most memory for them.
    # One made-up batch of 1,000 classes again and again, without data: the device's speed alone.
    config.data.synthetic = False

    config.preprocess = ConfigDict()
    mean, std = NORMALIZATIONS[models.base(config.model.base).normalization]
    config.preprocess.mean = mean  # RGB, of pixels in 0..1.
    config.preprocess.std = std
    # bicubic, bilinear, area, nearest, bicubic_tf1, bilinear_tf1, bicubic_pillow, bilinear_pillow:
    # effnet_jax/data/resizing.py tells whose they are. The reference's is bicubic_tf1, which takes
    # the host five times as long.
    config.preprocess.interpolation = "bicubic"
    # Evaluation's part of the image: padding, the central size / (size + crop_padding) of it;
    # fraction, the central crop_fraction; resize, the same cut out of the resized image, as by timm
    # and torchvision; or whole, squeezed to a square. See effnet_jax/data/preprocess.py.
    config.preprocess.crop_rule = "padding"
    config.preprocess.crop_padding = 32  # Pixels.
    config.preprocess.crop_fraction = 0.875  # Of the shorter side.
    config.preprocess.crop_area = (0.08, 1.0)  # Training: fraction of the image in a random crop.
    config.preprocess.crop_aspect = (3 / 4, 4 / 3)  # Its width over its height.
    config.preprocess.flip = True  # Training: mirror every other image.

    config.augment = ConfigDict()  # Of training images, after crop, resize and flip.
    config.augment.policy = "none"  # none, autoaugment (v0) or randaugment.
    config.augment.randaugment_layers = 2  # Operations an image.
    config.augment.randaugment_magnitude = 10.0  # Level of all of them; 10 is AutoAugment's most.
    # What the reference's operations do differently from Pillow's, one choice each; the reference's
    # first. Contrast blends with a grey: the number of pixels / 256, at most 255; or the mean.
    config.augment.contrast_mean = "pixel_count"  # pixel_count or image.
    # Posterize shifts by 8 bits at levels below 2.5, and by -1 to -4 from 22.5 on. TensorFlow makes
    # both 7, which leaves one bit; Pillow's rule gives black, and the image as it was.
    config.augment.posterize_shift = "clamp"  # clamp or pillow.
    # Solarize's threshold is 256 at level 10, more above. TensorFlow compares in uint8, where 256
    # is 0 and inverts everything, and 435 (level 17) is 179; in Pillow no pixel reaches it.
    config.augment.solarize_threshold = "wrap"  # wrap or no_op.
    # RandAugment draws a probability of 0.2 to 0.8 for each operation and doesn't use it.
    config.augment.randaugment_probability = "ignored"  # ignored or used.
    config.augment.erase_probability = 0.0  # Random erasing (1708.04896), last on the host.
    config.augment.erase_area = (0.02, 1 / 3)  # Fraction of the image.
    config.augment.erase_aspect = (0.3, 3.3)  # Height over width; log-uniform.
    config.augment.erase_fill = "mean"  # mean (of config.preprocess) or noise (uniform).
    config.augment.mixup_alpha = 0.0  # Beta(alpha, alpha) of mixup, on the device; 0.0: none.
    config.augment.cutmix_alpha = 0.0  # Of cutmix; where both are set, each takes half the images.

    config.loss = ConfigDict()
    config.loss.label_smoothing = 0.1  # Training loss only; evaluation reports plain cross-entropy.

    config.optimizer = ConfigDict()
    config.optimizer.name = "rmsprop"  # rmsprop, sgd or adamw: each with its own settings below.
    config.optimizer.sharded = False  # True: each device keeps a part of its state and of the EMA.
    # Learning rates are for 256 images a step and scale with the batch.
    config.optimizer.rmsprop = ConfigDict(
        {
            "learning_rate": 0.016,
            "decay": 0.9,
            "momentum": 0.9,
            "epsilon": 1e-3,
            "weight_decay": 1e-5,
        }
    )
    config.optimizer.sgd = ConfigDict(
        {
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-5,
        }
    )
    config.optimizer.adamw = ConfigDict(
        {
            "learning_rate": 2.5e-4,
            "b1": 0.9,
            "b2": 0.999,
            "epsilon": 1e-8,
            "weight_decay": 0.05,
        }
    )
    # Regexes over the slash-joined parameter name; the first full match gives the multiplier.
    config.optimizer.weight_decay_rules = ((r".*norm/(scale|bias)", 0.0), (r".*", 1.0))
    config.optimizer.learning_rate_rules = ((r".*", 1.0),)  # 0.0 freezes a parameter.

    config.schedule = ConfigDict()
    config.schedule.name = "staircase"  # staircase, cosine or constant.
    config.schedule.warmup_epochs = 5.0  # Linear from 0.
    config.schedule.decay_rate = 0.97  # Staircase: multiplies the rate ...
    config.schedule.decay_epochs = 2.4  # ... every so many epochs, counted from step 0.

    config.ema = ConfigDict()
    config.ema.decay = 0.9999  # min(decay, (1 + n) / (10 + n)) at update n; 0.0: no averaging.

    config.checkpoint = ConfigDict()
    config.checkpoint.save_epochs = 1.0  # Epochs between two saves; every evaluation saves as well.
    config.checkpoint.keep_newest = 2
    config.checkpoint.keep_best = 1
    config.checkpoint.best_metric = "ema_top1"  # Or raw_top1, ema_top5, raw_top5.
    # Another run's workdir or checkpoint folder: a new run starts at step 0 from its weights and
    # BatchNorm statistics; a classifier for another number of classes starts afresh.
    config.checkpoint.init_from = config_dict.placeholder(str)  # None: from random weights.
    config.checkpoint.init_weights = "ema"  # Which of its weights: ema or raw.
    config.checkpoint.resume = "auto"  # auto: go on from the workdir; never: it must be empty.

    config.nonfinite = ConfigDict()  # A loss, gradient or weight that is NaN or infinite.
    # stop; or rollback: to the last checkpoint, and on without the data of the steps since.
    config.nonfinite.action = "stop"
    config.nonfinite.max_rollbacks = 3  # In a run; then it stops.

    config.hosts = ConfigDict()  # Where a run has several, how long one waits for another.
    config.hosts.start_seconds = 1800.0  # While they start, restore and compile.
    config.hosts.stall_seconds = 600.0  # Without a step, or a batch of an evaluation.
    config.hosts.lost_seconds = 60.0  # Without a sign of life: asleep, dead or cut off.
    return config.lock()
