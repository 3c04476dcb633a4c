"""PyTorch's BatchNorm with TensorFlow's running variance, for the peers."""

from typing import Any

from torch import Tensor, nn


def list_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorms of a network by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def make_biased(model: nn.Module) -> None:
    """Update running variances with the biased variance of a batch, instead of the unbiased one."""
    for module in list_norms(model).values():
        module.register_forward_pre_hook(_remember)
        module.register_forward_hook(_correct)


def _remember(norm: nn.Module, _: Any) -> None:
    norm.kept = (1 - norm.momentum) * norm.running_var


def _correct(norm: nn.Module, inputs: tuple[Tensor], _: Any) -> None:
    if norm.training:
        count = inputs[0].numel() / inputs[0].shape[1]
        new = (count - 1) / count * (norm.running_var - norm.kept)
        norm.running_var.data.copy_(norm.kept + new)
