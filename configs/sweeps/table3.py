"""MobileNetV1, MobileNetV2 and ResNet-50 scaled (paper, table 3); `table3:mobilenet_v2` for one.

The paper doesn't state the compound coefficients of MobileNetV2 and ResNet-50. All three use those
of MobileNetV1: d=1.4, w=1.2, r=1.3.
"""

from effnet_jax import config as default
from effnet_jax.errors import check_choice
from effnet_jax.sweeps.runs import Run

BASES = {  # Depth, width and resolution of each row.
    "mobilenet_v1": {"width": (1, 2, 1), "resolution": (1, 1, 2)},
    "mobilenet_v2": {"depth": (4, 1, 1), "width": (1, 2, 1), "resolution": (1, 1, 2)},
    "resnet50": {"depth": (4, 1, 1), "width": (1, 2, 1), "resolution": (1, 1, 2)},
}


def get_sweep(config, argument):
    for base in argument.split(",") if argument else BASES:
        check_choice("base of table 3", base, BASES)
        own = default.get_config(base).model
        rows = {"baseline": (1, 1, 1), **BASES[base], "compound": (1.4, 1.2, 1.3)}
        for scaling, (d, w, r) in rows.items():
            overrides = {
                "model.base": base,
                "model.phi": None,
                "model.width": float(w),
                "model.depth": float(d),
                "model.resolution": round(config.model.base_resolution * r),
                "model.dropout": own.dropout,
                "model.survival_probability": own.survival_probability,
            }
            yield Run(f"{base}_{scaling}", base, scaling, overrides)
