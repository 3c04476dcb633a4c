"""The small grid search of section 3.3: alpha, beta, gamma >= 1 that about double the cost.

`grid`, or `grid:step=0.1,tolerance=0.15,phi=1`: every point of the grid with
|alpha * beta^2 * gamma^2 - 2| <= tolerance, as the base scaled by alpha^phi, beta^phi, gamma^phi.

Rounding moves the multiply-adds of a small network far from 2^phi times those of the base, and the
search would find the candidates that rounding favours. With `equal=1` each candidate gets the phi
that brings its real multiply-adds closest to 2^phi times those of the base.

`alpha=1.15,beta=1,gamma=1.3,within=0.1` is a finer search: this point, and the candidates whose
distance from it is at most 0.1 on each axis.
"""

from operator import itemgetter, sub

from effnet_jax.errors import UserError, check_choice
from effnet_jax.sweeps.grid import candidates, solve
from effnet_jax.sweeps.runs import Run, compound, multiply_adds, scaled

AXES = ("alpha", "beta", "gamma")


def settings(argument: str) -> dict[str, float]:
    """Parses the settings of the grid, such as "step=0.1,tolerance=0.2"."""
    given = {"step": 0.05, "tolerance": 0.1, "phi": 1.0, "equal": 0.0}
    given |= {"alpha": 0.0, "beta": 0.0, "gamma": 0.0, "within": 0.0}
    for part in filter(None, argument.split(",")):
        key, _, value = part.partition("=")
        check_choice("setting of the sweep", key, given)
        try:
            given[key] = float(value)
        except ValueError:
            raise UserError(f"{part!r} must be a name and a number, as in step=0.1") from None
        if not abs(given[key]) <= 100:
            raise UserError(f"the grid's {key} must be a number between -100 and 100; got {value}")
    return given


def get_sweep(config, argument):
    given = settings(argument)
    target = 2 ** given["phi"] * multiply_adds(config, scaled(config))
    points, middle = candidates(given["step"], given["tolerance"]), itemgetter(*AXES)(given)
    if limit := given["within"]:
        far = [max(map(abs, map(sub, point, middle))) for point in points]
        near = [point for point, by in zip(points, far, strict=True) if by <= limit + 1e-9]
        points = list(dict.fromkeys([middle, *near]))
    for point in points:
        phi = given["phi"]
        if given["equal"]:
            phi = solve(
                lambda phi, at=point: multiply_adds(config, compound(config, phi, *at)), target
            )
        name = "alpha{:g}_beta{:g}_gamma{:g}".format(*point)
        label = ", ".join(f"{value:g}" for value in point)
        yield Run(name, "grid", label, compound(config, phi, *point))
