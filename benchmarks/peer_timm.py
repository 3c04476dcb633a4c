"""timm's networks and a PyTorch trainer that follows TensorFlow, for comparison in parity.py.

Nothing here comes from effnet_jax. Both sides use the same file of weights, images and config.
"""

import copy
import functools
import math
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import timm
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from benchmarks.peer_norms import list_norms, make_biased

Arrays = dict[str, np.ndarray]


class Outcome(NamedTuple):
    """The outputs of a network for a batch; the last four only in training, by timm's names.

    Attributes:
      logits: [N, classes].
      features: by our names, [N, h, w, C] or [N, C].
      norms: outputs of each BatchNorm before activation, by the name of its scale, [N, h, w, C].
      statistics: BatchNorm's running statistics after the batch.
      gradients: of the loss, in PyTorch's layout.
      flips: the number of outputs of norms on different sides of a kink of ReLU or ReLU6 in the
        two networks.
    """

    logits: np.ndarray
    features: Arrays
    norms: Arrays
    statistics: Arrays
    gradients: Arrays
    flips: int


def build(name: str, path: pathlib.Path, config: ConfigDict) -> nn.Module:
    """timm's network `name` with the weights of a file, whose names and shapes must all match.

    Padding and BatchNorm's epsilon are timm's for this network. `config` is `config.model`.
    """
    keep = config.batch_norm_momentum
    model = timm.create_model(name, num_classes=config.num_classes, bn_momentum=1 - keep)
    model.load_state_dict(safetensors.torch.load_file(path), strict=True)
    make_biased(model)
    return model


def evaluate(model: nn.Module, images: np.ndarray) -> Outcome:
    """Evaluate a copy of the network on normalised images [N, H, W, 3], in the network's dtype."""
    model = copy.deepcopy(model).eval()
    features = _record_features(model)
    logits = model(_channels_first(images, model))
    return Outcome(_array(logits), features, {}, {}, {}, 0)


def train_batch(
    model: nn.Module, images: np.ndarray, labels: np.ndarray, smoothing: float, norms: Arrays
) -> Outcome:
    """Run a copy of the network on a batch in training, and compute the gradients of the loss.

    The gradient of ReLU is discontinuous at 0, where rounding decides. On which side a number lies
    is taken from `norms`, those of our network.
    """
    model = copy.deepcopy(model).train()
    features, found = _record_features(model), {}
    for name, norm in list_norms(model).items():
        if isinstance(norm.act, nn.ReLU | nn.ReLU6):
            top = 6.0 if isinstance(norm.act, nn.ReLU6) else math.inf
            norm.act = _SidedReLU(top, _channels_first(norms[f"{name}.weight"], model))
        norm.act.register_forward_pre_hook(
            functools.partial(_record_input, found, f"{name}.weight")
        )
    logits = model(_channels_first(images, model))
    cross_entropy(logits, labels, smoothing).backward()
    return Outcome(
        _array(logits),
        features,
        found,
        _arrays(_statistics(model)),
        _arrays((name, x.grad) for name, x in model.named_parameters()),
        sum(module.flips for module in model.modules() if isinstance(module, _SidedReLU)),
    )


class _SidedReLU(nn.Module):
    """ReLU up to `top` that passes inputs where `like`, not the input, is between the kinks."""

    def __init__(self, top: float, like: Tensor):
        super().__init__()
        self.top, self.like, self.flips = top, like, 0

    def forward(self, x: Tensor) -> Tensor:
        inside = (self.like > 0) & (self.like < self.top)
        self.flips += int((inside != ((x > 0) & (x < self.top))).sum())
        return torch.where(inside, x, self.like.clamp(0, self.top))


def _record_features(model: nn.Module) -> Arrays:
    """A dict that a run of the network fills with its features."""
    features = {}
    # timm's BatchNorm includes the activation.
    places = {"stem": model.bn1, "head": model.bn2, "pre_logits": model.global_pool}
    places |= {f"stage{number}": stage for number, stage in enumerate(model.blocks, 1)}
    for name, module in places.items():
        module.register_forward_hook(functools.partial(_record_output, features, name))
    return features


def _record_output(found: Arrays, name: str, _: nn.Module, __: Any, output: Tensor) -> None:
    found[name] = _array(output.permute(0, 2, 3, 1) if output.ndim == 4 else output)


def _record_input(found: Arrays, name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
    found[name] = _array(inputs[0].permute(0, 2, 3, 1))


def cross_entropy(logits: Tensor, labels: np.ndarray, smoothing: float) -> Tensor:
    """The mean over a batch, for labels that are smoothed towards uniform over all classes."""
    log = logits.log_softmax(-1)
    right = log[torch.arange(len(labels)), torch.from_numpy(labels).long()]
    return -((1 - smoothing) * right + smoothing * log.mean(-1)).mean()


def train(
    model: nn.Module, batches: list[Arrays], config: ConfigDict, examples: int
) -> tuple[list[float], Arrays, Arrays]:
    """Train the network with a step on each batch (image uint8 [N, H, W, 3], label [N]).

    RMSProp is TensorFlow's: the mean of squares starts at 1, epsilon is inside the square root, and
    the momentum accumulates updates multiplied by the learning rate. L2 is a term of the loss for
    all parameters except BatchNorm's. Weights and statistics are averaged as in
    tf.train.ExponentialMovingAverage with num_updates.

    Args:
      config: the whole config.
      examples: images in an epoch.

    Returns:
      The loss before each step, without L2; the final weights and statistics by timm's names; and
      their averages.
    """
    own = config.optimizer.rmsprop
    model.train()
    parameters = dict(model.named_parameters())
    in_norms = {f"{name}.{leaf}" for name in list_norms(model) for leaf in ("weight", "bias")}
    squares = {name: torch.ones_like(x) for name, x in parameters.items()}
    moments = {name: torch.zeros_like(x) for name, x in parameters.items()}
    averages = {name: x.detach().clone() for name, x in _everything(model)}
    mean, std = np.float32(config.preprocess.mean), np.float32(config.preprocess.std)
    losses = []
    for step, batch in enumerate(batches):
        images = (batch["image"].astype(np.float32) / 255 - mean) / std
        logits = model(_channels_first(images, model))
        loss = cross_entropy(logits, batch["label"], config.loss.label_smoothing)
        losses.append(loss.item())
        norm = sum((x**2).sum() for name, x in parameters.items() if name not in in_norms)
        model.zero_grad()
        (loss + own.weight_decay / 2 * norm).backward()
        rate = _learning_rate(step, config, examples)
        updates = step + 1
        share = 1 - min(config.ema.decay, (1 + updates) / (10 + updates))
        with torch.no_grad():
            for name, x in parameters.items():
                squares[name].lerp_(x.grad**2, 1 - own.decay)
                change = rate * x.grad / (squares[name] + own.epsilon).sqrt()
                moments[name].mul_(own.momentum).add_(change)
                x.sub_(moments[name])
            for name, x in _everything(model):
                averages[name].lerp_(x, share)
    return losses, _arrays(_everything(model)), _arrays(averages.items())


def _learning_rate(step: int, config: ConfigDict, examples: int) -> float:
    """A linear warm-up from 0, then an exponential decay in steps, counted from step 0."""
    peak = config.optimizer.rmsprop.learning_rate * config.batch_size / 256
    in_epoch = examples / config.batch_size
    warmup = int(config.schedule.warmup_epochs * in_epoch)
    if step < warmup:
        return peak * step / warmup
    down = math.floor(step / (config.schedule.decay_epochs * in_epoch))
    return peak * config.schedule.decay_rate**down


def _statistics(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, x) for name, x in model.named_buffers() if "running_" in name]


def _everything(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *_statistics(model)]


def _channels_first(images: np.ndarray, model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    return torch.tensor(images, dtype=dtype).permute(0, 3, 1, 2).contiguous()


def _arrays(named: Iterable[tuple[str, Tensor]]) -> Arrays:
    return {name: _array(x) for name, x in named}


def _array(x: Tensor) -> np.ndarray:
    return x.detach().numpy().copy()
