"""timm and geffnet (huggingface/pytorch-image-models, rwightman/gen-efficientnet-pytorch).

Two kinds of weights have the same names for their arrays: TensorFlow's (models called
tf_efficientnet...) and timm's own. Settings: timm/models/efficientnet.py at aa4b585.
"""

import json
import pathlib
import re
from typing import Any

from effnet_jax import models
from effnet_jax.config import NORMALIZATIONS
from effnet_jax.errors import UserError
from effnet_jax.models.efficientnet import VARIANTS
from effnet_jax.weights.names import OUTPUTS, TORCH, Array, Names

NORMALIZED = {name: {"mean": mean, "std": std} for name, (mean, std) in NORMALIZATIONS.items()}
# Names of a layer and its normalisation, by role, if they do not depend on the block.
PARTS = {
    "stem/conv": ("conv_stem", "bn1"),
    "squeeze_excite/reduce": ("se.conv_reduce", ""),
    "squeeze_excite/expand": ("se.conv_expand", ""),
    "head/conv": ("conv_head", "bn2"),
    "classifier": ("classifier", ""),
}


def _parts(array: Array) -> tuple[str, str]:
    if array.role in PARTS:
        return PARTS[array.role]
    if array.role == "depthwise":
        layer = "conv_dw"
    elif array.role == "expand":
        layer = "conv_exp" if array.fused else "conv_pw"
    elif array.expands:
        layer = "conv_pwl"
    else:
        layer = "conv" if array.fused else "conv_pw"
    return layer, f"bn{array.norm + 1}"


NAMES = Names(
    r"(conv_stem|blocks\.\d+\.\d+)\..+",
    block=lambda array: f"blocks.{array.stage}.{array.block}.",
    parts=_parts,
    **TORCH,
)


def recipe(
    crop: float = 0.875,
    size: int | None = None,
    normalization: str = "imagenet",
    interpolation: str = "bicubic",
    squash: bool = False,
) -> dict[str, Any]:
    """Returns the values of a `Preprocess` for a model's settings in timm or torchvision.

    Args:
      crop: side of the central square divided by the resized shorter side.
      size: side of the square in pixels; None: the model's own.
      normalization: a name in `config.NORMALIZATIONS`.
      interpolation: one of Pillow's.
      squash: whether both sides are resized to one length; with crop 1 that is the whole image.
    """
    return {
        **({} if size is None else {"resolution": size}),
        "crop_rule": ("squash" if crop < 1 else "whole") if squash else "resize",
        "crop_fraction": crop,
        "interpolation": f"{interpolation}_pillow",
        **NORMALIZED[normalization],
    }


def _numbered(family: str, crops: tuple[float, ...], **others: Any) -> dict[str, dict[str, Any]]:
    return {f"{family}{number}": recipe(crop, **others) for number, crop in enumerate(crops)}


# For tf_efficientnet..., except AdvProp's and ImageNet-21k's tags, which normalise as "inception".
TENSORFLOW = {
    **_numbered("b", (0.875, 0.882, 0.890, 0.904, 0.922, 0.934, 0.942, 0.949, 0.954)),
    "l2": recipe(0.96),
    **_numbered("lite", (0.875, 0.882, 0.890), normalization="inception"),
    "lite3": recipe(0.904, 300, "inception", "bilinear"),
    "lite4": recipe(0.920, 380, "inception", "bilinear"),
    "edgetpu-s": recipe(0.875, None, "inception"),
    "edgetpu-m": recipe(0.882, None, "inception"),
    "edgetpu-l": recipe(0.904, None, "inception"),
    **_numbered("v2-b", (0.875, 0.882, 0.890, 0.904)),
    "v2-s": recipe(1.0, None, "inception"),
    **dict.fromkeys(("v2-m", "v2-l", "v2-xl"), recipe(1.0, None, "inception", squash=True)),
}
# By timm's name, if the tag's settings differ from the model's.
TAGGED = {
    "tf_efficientnet_l2.ns_jft_in1k_475": recipe(0.936, 475),
    "tf_efficientnetv2_b3.in21k_ft_in1k": recipe(0.9, None, "inception", squash=True),
    "tf_efficientnetv2_b3.in21k": recipe(0.904, None, "inception"),
}
# timm's own weights: the tag that create_model loads, or the settings of a model without weights.
OWN = {
    **{model: values | NORMALIZED["imagenet"] for model, values in TENSORFLOW.items()},
    "b1": recipe(1.0, 288, "inception"),
    "b2": recipe(1.0, 288),
    "b3": recipe(1.0, 320),
    "b4": recipe(1.0, 384),
    "b5": recipe(1.0, 448, squash=True),
    "lite3": recipe(0.904, 300),
    "lite4": recipe(0.922, 380),
    "v2-m": recipe(1.0, 416),
    "v2-l": recipe(1.0, 480),
    "v2-xl": recipe(1.0, 512),
}
# Classes by the end of a tag, which a size may follow, as in "ns_jft_in1k_475".
TAGS = {"in1k": "imagenet", "in21k": "imagenet21k"}


def model_of(architecture: str) -> str | None:
    """Returns our name for timm's, such as "tf_efficientnetv2_b0.in1k"; None if we have no such."""
    match = re.fullmatch(r"(?:tf_)?efficientnet(v2)?_(\w+?)(?:\..*)?", architecture)
    if not match:
        return None
    name = match[2]
    if not match[1] and name in ("es", "em", "el"):
        name = f"edgetpu-{name[1]}"
    name = f"v2-{name}" if match[1] else name
    return name if name in VARIANTS else None


def name_of(weights: Any) -> str | None:
    """Returns timm's name for the network of `weights.Weights`; None if timm does not have it."""
    config = weights.config
    scaled = models.coefficients(config)
    scale = config.base, scaled.width, scaled.depth
    model = next((name for name, each in VARIANTS.items() if scale == each[:3]), None)
    settings = config.padding, config.batch_norm_epsilon
    prefix = {("same", 1e-3): "tf_", ("symmetric", 1e-5): ""}.get(settings)
    if model is None or prefix is None or config.stem_stride != 2:
        return None
    if re.match(r"v2-b\d", model) and not prefix:
        return None
    name = re.sub(r"edgetpu-(.)", r"e\1", model)
    return f"{prefix}efficientnetv2_{name[3:]}" if "v2-" in name else f"{prefix}efficientnet_{name}"


def to_config(weights: Any, name: str) -> dict[str, Any]:
    """Returns a config.json, as read by `read_config`, for a network that timm calls `name`.

    timm has fewer rules for crops and resizing; the nearest ones are written.
    """
    made = weights.preprocess
    side, rule = made["resolution"], made["crop_rule"]
    crop = side / (side + made["crop_padding"]) if rule == "padding" else made["crop_fraction"]
    kind = made["interpolation"].partition("_")[0]
    return {
        "architecture": name,
        "num_classes": len(weights.classes),
        "num_features": int(weights.variables["params"]["classifier"]["kernel"].shape[0]),
        "label_names": list(weights.classes),
        "pretrained_cfg": {
            "num_classes": len(weights.classes),
            "input_size": [3, side, side],
            "fixed_input_size": False,
            "interpolation": {"area": "box"}.get(kind, kind),
            "crop_pct": 1.0 if rule == "whole" else crop,
            "crop_mode": "squash" if rule in ("whole", "squash") else "center",
            "mean": list(made["mean"]),
            "std": list(made["std"]),
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }


def by_name(architecture: str) -> dict[str, Any]:
    """Returns model, origin and preprocess for timm's name, such as "tf_efficientnet_b0.ap_in1k".

    The dict is empty if we do not have the model.
    """
    model, is_ported = model_of(architecture), architecture.startswith("tf_")
    if model is None:
        return {}
    preprocess = TAGGED.get(architecture) or (TENSORFLOW if is_ported else OWN)[model]
    if ".ap_" in architecture:  # AdvProp.
        preprocess = preprocess | NORMALIZED["inception"]
    origin = "timm_tf" if is_ported else "timm"
    return {"model": model, "origin": origin, "preprocess": preprocess}


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Reads the facts that a config.json of timm states about the weights next to it.

    Returns:
      model, origin, preprocess and classes; empty if the file is missing or not timm's.

    Raises:
      UserError: the file is damaged, or lacks a value that timm writes.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"can't read {path}, which may state the preprocessing of the weights next to it: "
            f"{error}; download it again, or remove it"
        ) from None
    if not isinstance(content, dict) or not {"architecture", "pretrained_cfg"} <= content.keys():
        return {}
    try:
        name, settings = content["architecture"], content["pretrained_cfg"]
        # The file is not ours, so some keys are optional.
        *_, height, width = settings.get("test_input_size") or settings["input_size"]
        if height != width:
            raise ValueError(f"images of {height} x {width} pixels are not square")
        preprocess = recipe(
            float(settings.get("test_crop_pct") or settings["crop_pct"]),
            width,
            interpolation=settings["interpolation"],
            squash=settings.get("crop_mode") == "squash",
        ) | {"mean": tuple(settings["mean"]), "std": tuple(settings["std"])}
        classes = _classes(content, settings.get("tag") or "")
        model = model_of(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} doesn't state the preprocessing of the weights next to it: {why}. Correct it, "
            "or remove it"
        ) from None
    origin = "timm_tf" if name.startswith("tf_") else "timm"
    return {"model": model, "origin": origin, "preprocess": preprocess, "classes": classes}


def _classes(content: dict[str, Any], tag: str) -> str | list[str] | None:
    """Returns the label names of a config.json, or the tag's set of classes if its size fits.

    A fine-tuned model keeps the tag of the weights that it started from.
    """
    outputs, settings = content.get("num_classes"), content.get("pretrained_cfg", {})
    names = content.get("label_names") or settings.get("label_names")
    if isinstance(names, dict):  # The keys are numbers of outputs; some may be missing.
        names = [names.get(str(number), f"class {number}") for number in range(outputs)]
    if names:
        return [str(name) for name in names]
    classes = TAGS.get(re.sub(r"_\d+$", "", tag).rpartition("_")[2])
    return classes if outputs in (None, *OUTPUTS.get(classes, ())) else None
