"""Builds a Flax module from `config.model`."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from effnet_jax import scaling
from effnet_jax.errors import UserError, check_choice, near
from effnet_jax.models import baselines, efficientnet, operations
from effnet_jax.models.network import Architecture, Base, Network
from effnet_jax.models.network import init_variables as init_variables

MOST_PHI = 20  # About 2 ** 20 times the base network's multiply-adds.
RESNET = "resnet([1-9][0-9]{0,3})"
NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"
SCALE = (
    f"phi=(?P<phi>{NUMBER})|w=(?P<width>{NUMBER}),d=(?P<depth>{NUMBER}),r=(?P<resolution>[0-9]+)"
)
# `base` also accepts the other ResNets, which are too many to list.
BASES = {**efficientnet.FAMILIES, **baselines.MOBILENETS}
NAMES = (*BASES, *(f"resnet{depth}" for depth in baselines.RESNETS))


def base(name: str) -> Base:
    """Returns the base network `name`; raises UserError with similar names if it is unknown."""
    if match := re.fullmatch(RESNET, name):
        return baselines.resnet(int(match[1]))
    return BASES[check_choice("config.model.base", name, NAMES)]


def parse_variant(text: str) -> dict[str, Any]:
    """Returns the values of `config.model` for a model's short name.

    With phi, the width, depth, resolution and dropout are None: they are computed from phi.

    `text` is a key of `efficientnet.VARIANTS` ("b0", "lite4", "v2-m"), or a base network, a comma
    and a scale: "phi=1.5" (any real number), or "w=1.2,d=1.4,r=291" (width and depth coefficients,
    resolution in pixels). The base defaults to EfficientNet, the scale to 1.
    """
    variant = efficientnet.VARIANTS.get(text)
    name, comma, scale = text.partition(",")
    if variant:
        name = variant.base
    elif "=" in name:
        name, comma, scale = "efficientnet", ",", text
    match = re.fullmatch(SCALE, scale)
    is_base = name in BASES or re.fullmatch(RESNET, name)
    if not is_base or (comma and not match):
        problem = "cannot read" if is_base or name in efficientnet.VARIANTS else "unknown"
        known = near(name, [*efficientnet.VARIANTS, *NAMES])
        raise UserError(
            f"{problem} model {text!r}; did you mean {known}? A model can also be named by its "
            "scale, as in phi=1.5, w=1.2,d=1.4,r=291 or resnet50,phi=1.5"
        )
    network = base(name)
    values = {
        "base": name,
        "base_resolution": network.resolution,
        **dict.fromkeys(("phi", "width", "depth", "resolution")),
        "dropout": scaling.dropout_rate(0) if network.dropout is None else network.dropout,
        "survival_probability": network.survival_probability,
        "batch_norm_momentum": network.batch_norm_momentum,
    }
    if variant:
        return values | variant._asdict()
    if not match:
        return values | {"width": 1.0, "depth": 1.0, "resolution": network.resolution}
    kinds = {"phi": float, "width": float, "depth": float, "resolution": int}
    try:
        values |= {key: kinds[key](value) for key, value in match.groupdict().items() if value}
    except ValueError:
        raise UserError(f"cannot read model {text!r}: a value is not a number") from None
    return values if values["phi"] is None else values | {"dropout": None}


def _check(key: str, value: float | None, is_valid: bool, rule: str) -> None:
    if not is_valid:
        raise UserError(f"config.model.{key} must be {rule}; got {value}")


def coefficients(config: ConfigDict) -> scaling.Coefficients:
    """Returns width, depth and resolution, from phi or from the three keys themselves."""
    phi, width, depth, resolution = config.phi, config.width, config.depth, config.resolution
    if phi is None and None in (width, depth, resolution):
        raise UserError(
            "config.model needs either phi, or all of width, depth and resolution; "
            f"got phi=None, width={width}, depth={depth}, resolution={resolution}"
        )
    if phi is not None and (width, depth) != (None, None):
        raise UserError(
            "config.model sets both phi and width or depth, which contradict each other; to scale "
            "the dimensions one by one, choose the model as w=...,d=...,r=..."
        )
    if phi is None:
        scaled = scaling.Coefficients(width, depth, resolution)
    else:
        _check("phi", phi, abs(phi) <= MOST_PHI, f"at least -{MOST_PHI} and at most {MOST_PHI}")
        law = ("alpha", "beta", "gamma", "base_resolution", "base_width", "base_depth")
        scaled = scaling.compound(phi, **{key: config[key] for key in law})
        if resolution is not None:
            scaled = dataclasses.replace(scaled, resolution=resolution)
    if not (0 < scaled.width <= 100 and 0 < scaled.depth <= 100 and scaled.resolution > 0):
        raise UserError(f"width, depth (at most 100) and resolution must be above 0; got {scaled}")
    return scaled


def architecture(config: ConfigDict) -> Architecture:
    """Checks `config.model` and returns its scaled table; creates no arrays."""
    survival, stride, classes = config.survival_probability, config.stem_stride, config.num_classes
    _check("survival_probability", survival, 0 < survival <= 1, "above 0 and at most 1")
    _check("stem_stride", stride, stride in (1, 2), "1 or 2")
    _check("num_classes", classes, classes is not None and classes >= 1, "1 or more")
    spec = base(config.base).architecture(coefficients(config), classes, stride, survival)
    if spec.resolution < spec.total_stride:
        raise UserError(
            f"resolution {spec.resolution} is below the network's total stride "
            f"{spec.total_stride}. Raise the resolution to {spec.total_stride} or more "
            "(config.model.resolution, or r= in the model's name), or use a stem stride of 1 for "
            "small images (config.model.stem_stride)"
        )
    return spec


def dropout(config: ConfigDict) -> float:
    """Returns the dropout rate: the config's, else the base network's, else the one for phi."""
    rate = base(config.base).dropout if config.dropout is None else config.dropout
    if rate is None and config.phi is not None:
        rate = scaling.dropout_rate(config.phi)
    _check("dropout", rate, rate is not None and 0 <= rate < 1, "at least 0 and below 1")
    return rate


def build(config: ConfigDict) -> Network:
    """Returns the module of `config.model`; see `Network` for its inputs and outputs."""
    check_choice("config.model.dtype", config.dtype, ("float32", "bfloat16"))
    check_choice("config.model.remat", config.remat, ("none", "block"))
    check_choice("config.model.padding", config.padding, operations.PADDINGS)
    check_choice("config.model.operations", config.operations, ("auto", *operations.SETS))
    return Network(
        architecture(config),
        dropout=dropout(config),
        momentum=config.batch_norm_momentum,
        epsilon=config.batch_norm_epsilon,
        dtype=jnp.dtype(config.dtype),
        padding=config.padding,
        operations=config.operations,
        zero_classifier=config.zero_classifier,
        zero_residual=config.zero_residual,
        remat=config.remat == "block",
    )
