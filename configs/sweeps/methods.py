"""Width, depth or resolution alone against all three (paper, figure 8), at equal multiply-adds.

`methods`, or `methods:2,4` for other multiples of the base's multiply-adds, with the names of
methods for some of them: `methods:2,width,compound`. Compound scaling is by the config's own alpha,
beta and gamma; where they are not the paper's 1.2, 1.1 and 1.15, these are run as well, as
compound_paper. Rounding leaves each network a little off the multiple; one that would be further
off than TOLERANCE is an error, which says how near is possible.
"""

from effnet_jax.errors import UserError, check_choice
from effnet_jax.scaling import ALPHA, BETA, GAMMA, solve
from effnet_jax.sweeps.plan import Run, multiply_adds, numbers, scaled

MULTIPLES = (2.0, 4.0)
TOLERANCE = 0.05  # Of the multiply-adds wanted.


def get_sweep(config, argument):
    model = config.model
    own, paper = (model.alpha, model.beta, model.gamma), (ALPHA, BETA, GAMMA)

    def compound(k, alpha, beta, gamma):
        overrides = scaled(config, beta**k, alpha**k, gamma**k)
        return overrides | {"model.alpha": alpha, "model.beta": beta, "model.gamma": gamma}

    methods = {  # Overrides at a coefficient, and the coefficient's name.
        "width": (lambda w: scaled(config, width=w), "w"),
        "depth": (lambda d: scaled(config, depth=d), "d"),
        "resolution": (lambda r: scaled(config, resolution=r), "r"),
        "compound": (lambda k: compound(k, *own), "phi+"),
    }
    if own != paper:
        methods["compound_paper"] = (lambda k: compound(k, *paper), "phi+")
    chosen = [part for part in argument.split(",") if part[:1].isalpha()]
    for name in chosen:
        check_choice("method", name, methods)
    multiples = numbers(",".join(p for p in argument.split(",") if p not in chosen), MULTIPLES)
    base = multiply_adds(config, scaled(config))
    yield Run("base", "base", "1x", scaled(config))
    for multiple in multiples:
        for method, (overrides_at, symbol) in methods.items():
            if chosen and method not in chosen:
                continue
            target = multiple * base
            coefficient = solve(
                lambda value, at=overrides_at: multiply_adds(config, at(value)), target
            )
            overrides = overrides_at(coefficient)
            found = multiply_adds(config, overrides)
            if abs(found / target - 1) > TOLERANCE:
                raise UserError(
                    f"{method} alone can't reach {multiple:g} times the base's multiply-adds: "
                    f"{symbol}={coefficient:g} is nearest, with {found / base:.3g} times. Try "
                    f"methods:{found / base:.2g}, or another base"
                )
            label = f"{multiple:g}x ({symbol}{'' if symbol[-1] == '+' else '='}{coefficient:g})"
            yield Run(f"{method}_{multiple:g}x", method, label, overrides)
