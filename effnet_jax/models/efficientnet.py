"""EfficientNet V1, Lite, EdgeTPU and V2: tables of stages, a `Base` per family, a row per variant.

Sources of every figure here: arXiv 1905.11946, Table 1; tensorflow/tpu
models/official/efficientnet (efficientnet_builder.py, efficientnet_model.py,
lite/efficientnet_lite_builder.py, edgetpu/efficientnet_edgetpu_builder.py); google/automl
efficientnetv2 (effnetv2_configs.py, effnetv2_model.py).
"""

import functools
from typing import NamedTuple

from effnet_jax.models.mbconv import block_of
from effnet_jax.models.network import Base, Stage, Stem

FusedStage = functools.partial(Stage, fused=True)
STAGES = (
    Stage(kernel=3, stride=1, expand=1, filters=16, repeats=1),
    Stage(kernel=3, stride=2, expand=6, filters=24, repeats=2),
    Stage(kernel=5, stride=2, expand=6, filters=40, repeats=2),
    Stage(kernel=3, stride=2, expand=6, filters=80, repeats=3),
    Stage(kernel=5, stride=1, expand=6, filters=112, repeats=3),
    Stage(kernel=5, stride=2, expand=6, filters=192, repeats=4),
    Stage(kernel=3, stride=1, expand=6, filters=320, repeats=1),
)
EDGETPU_STAGES = (
    # The stem has 32 filters, but the reference expands from the 24 inputs in its table.
    FusedStage(kernel=3, stride=1, expand=4, filters=24, repeats=1, expand_of=24, skip=False),
    FusedStage(kernel=3, stride=2, expand=8, filters=32, repeats=2),
    FusedStage(kernel=3, stride=2, expand=8, filters=48, repeats=4),
    Stage(kernel=5, stride=2, expand=8, filters=96, repeats=5),
    Stage(kernel=5, stride=1, expand=8, filters=144, repeats=4),
    Stage(kernel=5, stride=2, expand=8, filters=192, repeats=2),
)


def _v2_stages(filters: tuple[int, ...], repeats: tuple[int, ...]) -> tuple[Stage, ...]:
    """Returns a table of V2. All have equal strides and expansions, and the same 3 fused stages."""
    rows = zip((1, 2, 2, 2, 1, 2, 1), filters, repeats, (1, 4, 4, 4, 6, 6, 6), strict=False)
    return tuple(Stage(*row[:3], expand=row[3], fused=n < 3) for n, row in enumerate(rows))


V2_STAGES = _v2_stages((16, 32, 48, 96, 112, 192), (1, 2, 2, 3, 5, 8))
V2_S_STAGES = _v2_stages((24, 48, 64, 128, 160, 256), (2, 4, 4, 6, 9, 15))
V2_M_STAGES = _v2_stages((24, 48, 80, 160, 176, 304, 512), (3, 5, 5, 7, 14, 18, 5))
V2_L_STAGES = _v2_stages((32, 64, 96, 192, 224, 384, 640), (4, 7, 7, 10, 19, 25, 7))
V2_XL_STAGES = _v2_stages((32, 64, 96, 192, 256, 512, 640), (4, 8, 8, 16, 24, 32, 8))
_squeezed = functools.partial(block_of, squeeze_ratio=0.25)
_family = functools.partial(Base, head_filters=1280, survival_probability=0.8)
# V2 rounds filters without the limit of 0.9. This affects only B3.
_v2 = functools.partial(
    _family, block=_squeezed, activation="swish", least=0.0, batch_norm_momentum=0.9
)
_large_v2 = functools.partial(_v2, normalization="128")
FAMILIES = {
    "efficientnet": _family(stages=STAGES, block=_squeezed, activation="swish"),
    "efficientnet_lite": _family(
        stages=STAGES, block=block_of, activation="relu6", fixed_ends=True, normalization="127"
    ),
    "efficientnet_edgetpu": _family(
        stages=EDGETPU_STAGES, block=block_of, activation="relu", normalization="127"
    ),
    "efficientnet_v2": _v2(stages=V2_STAGES),
    "efficientnet_v2_s": _large_v2(stages=V2_S_STAGES, stem=Stem(24), resolution=384, dropout=0.2),
    "efficientnet_v2_m": _large_v2(stages=V2_M_STAGES, stem=Stem(24), resolution=480, dropout=0.3),
    "efficientnet_v2_l": _large_v2(stages=V2_L_STAGES, resolution=480, dropout=0.4),
    "efficientnet_v2_xl": _large_v2(stages=V2_XL_STAGES, resolution=512, dropout=0.4),
}


class Variant(NamedTuple):
    """A published model: its family, coefficients, and the dropout that it was trained with."""

    base: str
    width: float
    depth: float
    resolution: int
    dropout: float


VARIANTS = {
    # Parameters with 1000 classes; top-1 as stated by the authors.
    "b0": Variant("efficientnet", 1.0, 1.0, 224, 0.2),  # 5,288,548; 77.1 (AutoAugment)
    "b1": Variant("efficientnet", 1.0, 1.1, 240, 0.2),  # 7,794,184; 79.1
    "b2": Variant("efficientnet", 1.1, 1.2, 260, 0.3),  # 9,109,994; 80.1
    "b3": Variant("efficientnet", 1.2, 1.4, 300, 0.3),  # 12,233,232; 81.6
    "b4": Variant("efficientnet", 1.4, 1.8, 380, 0.4),  # 19,341,616; 82.9
    "b5": Variant("efficientnet", 1.6, 2.2, 456, 0.4),  # 30,389,784; 83.6
    "b6": Variant("efficientnet", 1.8, 2.6, 528, 0.5),  # 43,040,704; 84.0
    "b7": Variant("efficientnet", 2.0, 3.1, 600, 0.5),  # 66,347,960; 84.3
    "b8": Variant("efficientnet", 2.2, 3.6, 672, 0.5),  # 87,413,142; 85.5 (AdvProp)
    "l2": Variant("efficientnet", 4.3, 5.3, 800, 0.5),  # 480,309,308; 88.4 (NoisyStudent)
    "lite0": Variant("efficientnet_lite", 1.0, 1.0, 224, 0.2),  # 4,652,008; 75.1
    "lite1": Variant("efficientnet_lite", 1.0, 1.1, 240, 0.2),  # 5,416,680; 76.7
    "lite2": Variant("efficientnet_lite", 1.1, 1.2, 260, 0.3),  # 6,092,072; 77.6
    # Other implementations reach the stated top-1 with lite3 at 300 pixels and lite4 at 380.
    "lite3": Variant("efficientnet_lite", 1.2, 1.4, 280, 0.3),  # 8,197,096; 79.8
    "lite4": Variant("efficientnet_lite", 1.4, 1.8, 300, 0.3),  # 13,006,568; 81.5
    # The reference's models have 1001 classes; the first is the background.
    "edgetpu-s": Variant("efficientnet_edgetpu", 1.0, 1.0, 224, 0.2),  # 5,438,392; 77.23
    "edgetpu-m": Variant("efficientnet_edgetpu", 1.0, 1.1, 240, 0.2),  # 6,899,496; 78.69
    "edgetpu-l": Variant("efficientnet_edgetpu", 1.2, 1.4, 300, 0.3),  # 10,589,712; 80.62
    "v2-b0": Variant("efficientnet_v2", 1.0, 1.0, 224, 0.2),  # 7,139,704; 78.7
    "v2-b1": Variant("efficientnet_v2", 1.0, 1.1, 240, 0.2),  # 8,141,052; 79.8
    "v2-b2": Variant("efficientnet_v2", 1.1, 1.2, 260, 0.3),  # 10,096,086; 80.5
    "v2-b3": Variant("efficientnet_v2", 1.2, 1.4, 300, 0.3),  # 14,358,406; 82.1
    "v2-s": Variant("efficientnet_v2_s", 1.0, 1.0, 384, 0.2),  # 21,458,488; 83.9
    "v2-m": Variant("efficientnet_v2_m", 1.0, 1.0, 480, 0.3),  # 54,139,356; 85.2
    "v2-l": Variant("efficientnet_v2_l", 1.0, 1.0, 480, 0.4),  # 118,515,272; 85.7
    "v2-xl": Variant("efficientnet_v2_xl", 1.0, 1.0, 512, 0.4),  # 208,119,808; 87.2 (ImageNet-21k)
}
