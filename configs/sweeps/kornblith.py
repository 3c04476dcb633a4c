"""The grid of arXiv 1805.08974 for fine-tuning: 7 learning rates by 7 weight decays and none.

Learning rates are 1e-4 to 1e-1 and weight decays 1e-6 to 1e-3, both logarithmically spaced. The
weight decays are divided by the learning rate, as 2002.05709, appendix B.8.2, states for the same
grid. The config must be evaluated on validation images, such as
configs/transfer.py:SET,MODEL,kornblith_grid; one that is evaluated on test images is refused.
"""

import numpy as np

from effnet_jax.errors import UserError
from effnet_jax.sweeps.runs import Run

TEST = {"food101": "validation"}  # The test split by data set; test by default.


def get_sweep(config, argument):
    if argument:
        raise UserError(f"the sweep kornblith takes no argument; got {argument!r}")
    if config.data.eval_split == TEST.get(config.data.name, "test"):
        raise UserError(
            f"the sweep would choose its settings on the test images, config.data.eval_split="
            f"{config.data.eval_split}; take a config that is evaluated on validation images, as "
            "configs/transfer.py:SET,MODEL,kornblith_grid"
        )
    name = config.optimizer.name
    for rate in np.logspace(-4, -1, 7):
        for decay in (*np.logspace(-6, -3, 7), 0.0):
            overrides = {
                f"optimizer.{name}.learning_rate": float(f"{rate:.6g}"),
                f"optimizer.{name}.weight_decay": float(f"{decay / rate:.6g}"),
            }
            label = f"lr={rate:.2g}, wd={decay:.2g}/lr"
            yield Run(f"lr{rate:.2g}_wd{decay:.2g}", f"wd={decay:.2g}/lr", label, overrides)
