"""The grid search of the paper's section 3.3: coefficients to try, and networks of equal cost."""

import itertools
import math
from collections.abc import Callable

from effnet_jax.errors import UserError

MOST_POINTS = 100_000  # Of a grid.


def candidates(
    step: float = 0.05, tolerance: float = 0.1, product: float = 2.0
) -> list[tuple[float, float, float]]:
    """The grid of step 1 in section 3.3: each (alpha, beta, gamma) that about doubles the cost.

    Each coefficient is 1 plus a multiple of `step`, and alpha * beta**2 * gamma**2 is within
    `tolerance` of `product`. Raises UserError, which names the nearest point, if there is none.
    """
    if not (step > 0 and tolerance >= 0 and product > 1):
        raise UserError(
            "a grid needs step > 0, tolerance >= 0 and product > 1; "
            f"got step={step:g}, tolerance={tolerance:g}, product={product:g}"
        )

    def axis(most: float) -> list[float]:
        count = math.floor((most - 1) / step + 1e-9)
        return [round(1 + index * step, 10) for index in range(count + 1)]

    def distance(point: tuple[float, float, float]) -> float:
        return abs(point[0] * (point[1] * point[2]) ** 2 - product)

    alphas, others = axis(product + tolerance), axis((product + tolerance) ** 0.5)
    if len(alphas) * len(others) ** 2 > MOST_POINTS:
        raise UserError(f"a grid with step={step:g} has over {MOST_POINTS:,} points; increase step")
    grid = list(itertools.product(alphas, others, others))
    points = [point for point in grid if distance(point) <= tolerance + 1e-9]
    if not points:
        alpha, beta, gamma = nearest = min(grid, key=distance)
        raise UserError(
            f"no point of the grid with step={step:g} has alpha * beta^2 * gamma^2 within "
            f"{tolerance:g} of {product:g}; the nearest, alpha={alpha:g}, beta={beta:g}, gamma="
            f"{gamma:g}, is {distance(nearest):.3g} off. Use a smaller step or a larger tolerance"
        )
    return points


def solve(cost_at: Callable[[float], int], target: float) -> float:
    """The positive coefficient whose cost is nearest to `target`; costs must increase with it.

    Costs change in steps because networks have rounded sizes, so an equal cost is rarely possible.
    The coefficient is rounded to as few digits as leave its cost the same.
    """
    below, above = 0.01, 1.0
    while cost_at(above) <= target:
        below, above = above, 2 * above
    while above - below > 1e-7 * above:
        middle = (below + above) / 2
        below, above = (middle, above) if cost_at(middle) <= target else (below, middle)
    best = min((below, above), key=lambda value: abs(cost_at(value) - target))
    best_cost = cost_at(best)
    rounded = (round(best, digits) for digits in range(1, 8))
    return next((value for value in rounded if cost_at(value) == best_cost), best)
