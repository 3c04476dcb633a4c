"""Width, depth or resolution alone against all three (paper, figure 8), at equal multiply-adds.

`methods`, or `methods:2,4` for other multiples of the base's multiply-adds; names of methods choose
some of them: `methods:2,width,compound`. Compound scaling uses the alpha, beta and gamma of the
config; if they are not the paper's 1.2, 1.1 and 1.15, those are run too, as compound_paper.

Rounding makes costs change in steps, so that not all methods may reach a multiple. The sweep then
takes the nearest cost, at most a tenth away, that all methods reach within 5 %; if there is none,
that is an error. `methods:8,tolerance=0.06` allows 6 %. Labels have the requested multiple; costs
are the real ones.
"""

from effnet_jax.errors import UserError, check_choice
from effnet_jax.scaling import ALPHA, BETA, GAMMA
from effnet_jax.sweeps.grid import solve
from effnet_jax.sweeps.runs import Run, compound, multiply_adds, numbers, scaled

MULTIPLES = (2.0, 4.0)
TOLERANCE = 0.05  # Default, relative to the target multiply-adds.
NEAR = [1 + step / 40 for step in (0, -1, 1, -2, 2, -3, 3, -4, 4)]  # To try, nearest first.


def get_sweep(config, argument):
    model = config.model
    own, paper = (model.alpha, model.beta, model.gamma), (ALPHA, BETA, GAMMA)

    methods = {  # A function from a coefficient to overrides, and the name of the coefficient.
        "width": (lambda w: scaled(config, width=w), "w"),
        "depth": (lambda d: scaled(config, depth=d), "d"),
        "resolution": (lambda r: scaled(config, resolution=r), "r"),
        "compound": (lambda k: compound(config, k, *own), "phi+"),
    }
    if own != paper:
        methods["compound_paper"] = (lambda k: compound(config, k, *paper), "phi+")
    parts = argument.split(",")
    settings = dict(part.split("=", 1) for part in parts if "=" in part)
    for key in settings:
        check_choice("setting of the sweep", key, ["tolerance"])
    tolerance = numbers(settings.get("tolerance", ""), [TOLERANCE])[0]
    chosen = [part for part in parts if part[:1].isalpha() and "=" not in part]
    for name in chosen:
        check_choice("method", name, methods)
    multiples = numbers(",".join(p for p in parts if not p[:1].isalpha()), MULTIPLES)
    methods = {name: methods[name] for name in chosen or methods}
    base = multiply_adds(config, scaled(config))

    def solved(multiple):
        """Returns the largest relative error of the methods, and the coefficient of each."""
        found, worst = {}, 0.0
        for method, (overrides_at, _) in methods.items():
            target = multiple * base
            found[method] = solve(lambda x, at=overrides_at: multiply_adds(config, at(x)), target)
            reached = multiply_adds(config, overrides_at(found[method]))
            worst = max(worst, abs(reached / target - 1))
        return worst, found

    yield Run("base", "base", "1x", scaled(config))
    for multiple in multiples:
        tried = []
        for near in NEAR:  # Costs change in steps: look for one that all reach.
            worst, found = solved(multiple * near)
            tried.append(worst)
            if worst <= tolerance:
                break
        else:
            raise UserError(
                f"{', '.join(methods)} can't all come within {tolerance:.0%} of one cost near "
                f"{multiple:g} times the base's; the best is {min(tried):.1%}, because rounding is "
                "coarse in a small network. Try another multiple, base or a larger tolerance="
            )
        for method, coefficient in found.items():
            overrides_at, symbol = methods[method]
            label = f"{multiple:g}x ({symbol}{'' if symbol[-1] == '+' else '='}{coefficient:g})"
            yield Run(f"{method}_{multiple:g}x", method, label, overrides_at(coefficient))
