"""`build(config.model)`: from the compound coefficients in a config to a Flax module."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from effnet_jax import scaling
from effnet_jax.errors import UserError, check_choice, near
from effnet_jax.models import efficientnet, mobilenet, operations, resnet
from effnet_jax.models.network import Architecture, Base, Network

MOST_PHI = 20  # About 2 ** 20 times the base network's multiply-adds.
RESNET = "resnet([1-9][0-9]{0,3})"
NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"
SCALE = (
    f"phi=(?P<phi>{NUMBER})|w=(?P<width>{NUMBER}),d=(?P<depth>{NUMBER}),r=(?P<resolution>[0-9]+)|"
)
# ResNets, of which there are too many to list, are in `base`.
BASES = {**efficientnet.FAMILIES, "mobilenet_v1": mobilenet.V1, "mobilenet_v2": mobilenet.V2}
NAMES = (*BASES, *(f"resnet{depth}" for depth in resnet.IMAGENET))


def base(name: str) -> Base:
    """The base network of a name; a UserError with the near ones where there is none."""
    if match := re.fullmatch(RESNET, name):
        return resnet.base(int(match[1]))
    return BASES[check_choice("config.model.base", name, NAMES)]


def parse_variant(text: str) -> dict[str, Any]:
    """What a model's short name sets in `config.model`.

    Args:
      text: one of `efficientnet.VARIANTS` ("b0", "lite4", "edgetpu-s", "v2-m"); or a base network
        ("mobilenet_v2", "efficientnet_lite") with a comma and how it is scaled: "phi=1.5" (any real
        number), or "w=1.2,d=1.4,r=291" (width and depth coefficients, resolution in pixels). Either
        may be left out: the base is then EfficientNet, or is not scaled.

    Returns:
      Values for the keys base, base_resolution, phi, width, depth, resolution, dropout,
      survival_probability and batch_norm_momentum; None where the law decides.
    """
    name, comma, scale = text.partition(",")
    variant = efficientnet.VARIANTS.get(text)
    if variant:
        name = variant.base
    elif "=" in name:
        name, scale = "efficientnet", text
    elif name in (*efficientnet.VARIANTS, "phi", "w", "d", "r") or (comma and not scale):
        raise _unreadable(text)
    elif name not in BASES and not re.fullmatch(RESNET, name):
        known = near(name, [*efficientnet.VARIANTS, *NAMES])
        raise UserError(
            f"unknown model {text!r}; did you mean {known}, phi=1.5, or w=1.2,d=1.4,r=291?"
        )
    found, match = base(name), re.fullmatch(SCALE, scale)
    if not match:
        raise _unreadable(text)
    values = {
        "base": name,
        "base_resolution": found.resolution,
        "phi": None,
        "width": None,
        "depth": None,
        "resolution": None,
        # The law's at phi = 0, where nothing else says.
        "dropout": scaling.dropout_rate(0) if found.dropout is None else found.dropout,
        "survival_probability": found.survival_probability,
        "batch_norm_momentum": found.batch_norm_momentum,
    }
    if variant:
        return values | variant._asdict()
    if not scale:
        return values | {"width": 1.0, "depth": 1.0, "resolution": found.resolution}
    scaled = {key: value for key, value in match.groupdict().items() if value}
    try:
        values |= {key: (int if key == "resolution" else float)(scaled[key]) for key in scaled}
    except ValueError:
        raise UserError(f"cannot read model {text!r}: a value is not a number") from None
    return values if values["phi"] is None else values | {"dropout": None}


def _unreadable(text: str) -> UserError:
    return UserError(
        f"cannot read model {text!r}; write phi=1.5, or w=1.2,d=1.4,r=291, if need be after a base "
        "network and a comma, as in resnet50,phi=1.5"
    )


def coefficients(config: ConfigDict) -> scaling.Coefficients:
    """Width, depth and resolution of `config.model`: from phi, or given one by one."""
    if config.phi is not None and not abs(config.phi) <= MOST_PHI:
        raise UserError(f"phi must be within -{MOST_PHI} and {MOST_PHI}; got {config.phi}")
    given = (config.width, config.depth, config.resolution)
    if config.phi is None:
        if None in given:
            raise UserError(
                "config.model needs either phi, or all of width, depth and resolution; "
                f"got phi=None, width={given[0]}, depth={given[1]}, resolution={given[2]}"
            )
        scaled = scaling.Coefficients(*given)
    else:
        if config.width is not None or config.depth is not None:
            raise UserError(
                "config.model has both phi and width or depth, which contradict each other; "
                "choose the model as w=...,d=...,r=... to scale dimensions one by one"
            )
        scaled = scaling.compound(
            config.phi,
            config.alpha,
            config.beta,
            config.gamma,
            config.base_resolution,
            config.base_width,
            config.base_depth,
        )
        if config.resolution is not None:
            scaled = scaling.Coefficients(scaled.width, scaled.depth, config.resolution)
    if not (0 < scaled.width <= 100 and 0 < scaled.depth <= 100 and scaled.resolution > 0):
        raise UserError(f"width, depth (at most 100) and resolution must be above 0; got {scaled}")
    return scaled


def architecture(config: ConfigDict) -> Architecture:
    """The scaled table of `config.model`, checked; builds no arrays."""
    if not 0 < config.survival_probability <= 1:
        raise UserError(
            "config.model.survival_probability must be above 0 and at most 1; "
            f"got {config.survival_probability}"
        )
    if config.stem_stride not in (1, 2):
        raise UserError(f"config.model.stem_stride must be 1 or 2; got {config.stem_stride}")
    if config.num_classes is None or config.num_classes < 1:
        raise UserError(f"config.model.num_classes must be 1 or more; got {config.num_classes}")
    spec = base(config.base).architecture(
        coefficients(config), config.num_classes, config.stem_stride, config.survival_probability
    )
    if spec.resolution < spec.total_stride:
        raise UserError(
            f"resolution {spec.resolution} is below the network's total stride "
            f"{spec.total_stride}: nothing would be left to pool. Raise the resolution to "
            f"{spec.total_stride} or more (config.model.resolution, or r= in the model's name), or "
            "use a stem stride of 1 for small images (config.model.stem_stride)"
        )
    return spec


def dropout(config: ConfigDict) -> float:
    """The rate before the classifier: the config's, else the base's own, else the law's by phi."""
    rate = base(config.base).dropout if config.dropout is None else config.dropout
    if rate is None and config.phi is not None:
        rate = scaling.dropout_rate(config.phi)
    if rate is None or not 0 <= rate < 1:
        raise UserError(f"config.model.dropout must be at least 0 and below 1; got {rate}")
    return rate


def build(config: ConfigDict) -> nn.Module:
    """The module of `config.model`.

    `module.apply(variables, images, train=...)` returns `(logits, features)`; see Network.
    """
    check_choice("config.model.dtype", config.dtype, ("float32", "bfloat16"))
    check_choice("config.model.remat", config.remat, ("none", "block"))
    check_choice("config.model.padding", config.padding, operations.PADDINGS)
    return Network(
        architecture(config),
        dropout=dropout(config),
        momentum=config.batch_norm_momentum,
        epsilon=config.batch_norm_epsilon,
        dtype=jnp.dtype(config.dtype),
        padding=config.padding,
        zero_classifier=config.zero_classifier,
        remat=config.remat == "block",
    )


def init_variables(model: nn.Module, resolution: int, key: jax.Array) -> dict[str, Any]:
    """Fresh params and batch_stats; under jit the forward pass is not computed."""
    return model.init(key, jnp.zeros((1, resolution, resolution, 3)), train=False)
