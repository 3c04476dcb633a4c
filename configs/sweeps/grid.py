"""The small grid search of section 3.3: alpha, beta, gamma >= 1 that about double the cost.

`grid`, or `grid:step=0.1,tolerance=0.15,phi=1`: every point of the grid with
|alpha * beta^2 * gamma^2 - 2| <= tolerance, as the base scaled by alpha^phi, beta^phi, gamma^phi.
"""

from effnet_jax.scaling import candidates
from effnet_jax.sweeps.plan import Run, scaled, settings


def get_sweep(config, argument):
    given = settings(argument, step=0.05, tolerance=0.1, phi=1.0)
    phi = given["phi"]
    for alpha, beta, gamma in candidates(given["step"], given["tolerance"]):
        overrides = scaled(config, beta**phi, alpha**phi, gamma**phi)
        overrides |= {"model.alpha": alpha, "model.beta": beta, "model.gamma": gamma}
        name = f"alpha{alpha:g}_beta{beta:g}_gamma{gamma:g}"
        yield Run(name, "grid", f"{alpha:g}, {beta:g}, {gamma:g}", overrides)
