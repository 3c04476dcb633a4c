"""Width at four depths and resolutions (paper, figure 4): `width_at`, or `width_at:1,1.4,2`.

The paper's text has r = 2.0 where the legend of the figure has 1.3; this sweep uses 1.3.
"""

from effnet_jax.sweeps.runs import Run, numbers, scaled

LINES = ((1.0, 1.0), (1.0, 1.3), (2.0, 1.0), (2.0, 1.3))  # Depth, resolution.
WIDTHS = (1.0, 1.4, 1.8, 2.6, 3.8)  # The paper does not print those of the figure.


def get_sweep(config, argument):
    for d, r in LINES:
        for w in numbers(argument, WIDTHS):
            overrides = scaled(config, width=w, depth=d, resolution=r)
            yield Run(f"d{d:g}_r{r:g}_w{w:g}", f"d={d:.1f}, r={r:.1f}", f"w={w:g}", overrides)
