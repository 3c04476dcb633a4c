"""Transfer learning: the eight data sets of the paper's Table 5, and three recipes.

Command:   python train.py --config=configs/transfer.py:SET,MODEL --workdir=runs/mine
           --config.init.weights=FILE --config.data.data_dir=DIR
Argument:  SET,MODEL or SET,MODEL,RECIPE, as in flowers,v2-s,v2. SET is cifar10, cifar100,
           birdsnap, cars, flowers, aircraft, pets or food101; MODEL is as in configs/imagenet.py;
           RECIPE is one of the four below, by default v2 for the models of V2, else paper.
             paper           the reference's ImageNet settings with a quarter of the learning rate
                             (from its author, github.com/tensorflow/tpu, issue 476). He states no
                             batch size or length; here they are 256, and that of the reference.
             kornblith       20,000 steps of SGD (arXiv 1805.08974, whose settings the paper says it
                             borrows), with the learning rate and weight decay from kornblith_grid
             kornblith_grid  the same for --sweep=kornblith: trains without the validation images,
                             and is evaluated on them
             v2              10,000 steps of RMSProp (google/automl efficientnetv2 at 6a54c87)
Data:      from TFDS as ArrayRecord; birdsnap, cars and aircraft as the authors' folders and lists.
           docs/transfer.md explains how to get each. Images are resized to the model's resolution.
Splits:    trains on all training and validation images, and evaluates on the test images, as in
           SETS. The last checkpoint counts: none is chosen by the test images.
Metric:    top-1; mean_per_class for aircraft, flowers and pets, as in arXiv 1805.08974, table 1.
Hardware:  one accelerator for the small models; batch 256 of b0 at 224 px in bfloat16.
Expect:    the published accuracies in SETS; none of these runs has been repeated here yet.
"""

from typing import NamedTuple

from effnet_jax import config as default
from effnet_jax.errors import UserError, check_choice

V2_WEIGHTS = ("v2-s", "v2-m", "v2-l")


class Set(NamedTuple):
    """A data set, its splits and the published accuracies.

    Attributes:
      name: its name in TFDS, or that of its split files.
      train, test: the split with all training and validation images, and the test split.
      images: number of images in `train`.
      part, validation: the splits for choosing settings: training images and validation images.
      part_images: number of images in `part`.
      metric: top1, or mean_per_class, the mean of the classes' accuracies.
      paper: accuracies in percent by model, from 1905.11946, table 5.
      v2: accuracies of V2_WEIGHTS, from 2104.00298; top-1 also for flowers, as its code counts.
      source: `config.data.source`.
    """

    name: str
    train: str
    images: int
    test: str
    part: str
    part_images: int
    validation: str
    metric: str
    paper: dict[str, float]
    v2: tuple[float, ...] = ()
    source: str = "tfds"


# Numbers of images: 1905.11946, table 6. Where the authors have no validation split, it is a tenth
# of the training images, because 1805.08974 doesn't publish its own.
SETS = {
    "cifar10": Set(
        "cifar10", "train", 50_000, "test", "train[:45000]", 45_000, "train[45000:]", "top1",
        {"b0": 98.1, "b7": 98.9}, (98.7, 99.0, 99.1),
    ),
    "cifar100": Set(
        "cifar100", "train", 50_000, "test", "train[:45000]", 45_000, "train[45000:]", "top1",
        {"b0": 88.1, "b7": 91.7}, (91.5, 92.2, 92.3),
    ),
    "birdsnap": Set(
        "birdsnap", "trainval", 47_386, "test", "train", 42_647, "validation", "top1",
        {"b5": 82.0, "b7": 84.3}, source="split_files",
    ),
    "cars": Set(
        "cars196", "trainval", 8_144, "test", "train", 7_330, "validation", "top1",
        {"b3": 93.6, "b7": 94.7}, (93.8, 94.6, 95.1), source="split_files",
    ),
    # V2 also trains on train + validation: datasets.py, FlowersInput.
    "flowers": Set(
        "oxford_flowers102", "train+validation", 2_040, "test", "train", 1_020, "validation",
        "mean_per_class", {"b5": 98.5, "b7": 98.8}, (97.9, 98.5, 98.8),
    ),
    "aircraft": Set(
        "fgvc_aircraft", "trainval", 6_667, "test", "train", 3_334, "validation",
        "mean_per_class", {"b3": 90.7, "b7": 92.9}, source="split_files",
    ),
    # Table 6 prints 3,369 test images; TFDS and the authors have 3,669.
    "pets": Set(
        "oxford_iiit_pet", "train", 3_680, "test", "train[:90%]", 3_312, "train[90%:]",
        "mean_per_class", {"b4": 94.8, "b6": 95.4},
    ),
    # The authors' test images are TFDS's validation.
    "food101": Set(
        "food101", "train", 75_750, "validation", "train[:90%]", 68_175, "train[90%:]", "top1",
        {"b4": 91.5, "b7": 93.0},
    ),
}  # fmt: skip


def paper(config, images: int) -> None:
    config.batch_size = 256  # The learning rate scales with it.
    config.augment.policy = "autoaugment"
    config.optimizer.rmsprop.learning_rate = 0.016 / 4


def kornblith(config, images: int) -> None:
    """The settings of arXiv 1805.08974, which 2002.05709, appendix B.8.2, repeats in words.

    Neither states a schedule, label smoothing or averaging. Here the schedule is a cosine, and the
    other two are off.
    """
    config.batch_size = 256
    config.epochs = epochs(20_000, 256, images)
    config.model.batch_norm_momentum = max(1 - 10 / (images / 256), 0.9)
    config.optimizer.name = "sgd"
    config.optimizer.sgd.update(momentum=0.9, nesterov=True)
    # The middle of the grid; docs/transfer.md explains how to find the best values.
    config.optimizer.sgd.update(learning_rate=10**-2.5, weight_decay=10**-4.5 / 10**-2.5)
    config.schedule.update(name="cosine", warmup_epochs=0.0)
    config.loss.label_smoothing = 0.0
    config.ema.decay = 0.0


def v2(config, images: int) -> None:
    """The settings of google/automl efficientnetv2 (6a54c87).

    From datasets.py, ImagenetFt, and preprocessing.py, preprocess_for_finetune. The paper,
    2104.00298, section 5.3, has cosine decay and no weight decay instead. 15 epochs are more than
    10,000 steps for more than 341,333 images.
    """
    config.batch_size, config.epoch_steps = 512, "whole"
    config.epochs = epochs(10_000, 512, images // 512 * 512)
    config.model.dropout, config.model.batch_norm_scope = 0.0, "reference_v2"
    config.optimizer.rmsprop.update(learning_rate=0.0005, accumulator=0.0)  # 0.001 at batch 512.
    config.optimizer.weight_decay_rules = ((r".*/(scale|bias)", 0.0), (r".*", 1.0))
    config.schedule.update(name="constant", warmup_epochs=1.0)
    config.ema.decay = 0.9996
    # Whole images, resized to a square: with an area of 1.0 a crop is the whole image.
    config.preprocess.update(crop_rule="whole", crop_area=(1.0, 1.0), interpolation="bilinear")
    # A square of noise, half as wide as the image (pad_size=image_size // 4 around its centre).
    config.augment.cutout = 0.5


def epochs(steps: int, batch_size: int, images: int) -> float:
    """Converts a number of steps to epochs, with half a step more because it is rounded down."""
    return (steps + 0.5) * batch_size / images


RECIPES = {"paper": paper, "kornblith": kornblith, "kornblith_grid": kornblith, "v2": v2}


def get_config(argument: str = "cifar10,b0"):
    name, _, rest = argument.partition(",")
    model, _, recipe = rest.rpartition(",")
    if recipe not in RECIPES:
        model, recipe = rest, "v2" if rest.startswith("v2-") else "paper"
    if not model:
        raise UserError(f"{argument!r} must be SET,MODEL or SET,MODEL,RECIPE, as in cifar10,b0")
    chosen = SETS[check_choice("data set of configs/transfer.py", name, SETS)]
    try:
        config = default.get_config(model)
    except UserError as error:
        text = f"After the data set, a model; after a comma: {', '.join(RECIPES)}."
        raise UserError(f"{error} {text}") from None
    is_grid = recipe == "kornblith_grid"
    images = chosen.part_images if is_grid else chosen.images
    config.model.dtype = "bfloat16"
    config.model.zero_classifier = True  # Random logits would disturb the other layers.
    config.data.source, config.data.name = chosen.source, chosen.name
    config.data.train_split = chosen.part if is_grid else chosen.train
    config.data.eval_split = chosen.validation if is_grid else chosen.test
    RECIPES[recipe](config, images)
    config.eval_batch_size = 256
    config.log_steps = 50
    config.eval_epochs = config.checkpoint.save_epochs = config.epochs / 10
    config.checkpoint.keep_best = 0  # The last weights count: no choice uses the test images.
    return config
