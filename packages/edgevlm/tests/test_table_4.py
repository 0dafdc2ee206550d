"""Costs of the paper's four fusion variants (Table 4), recomputed from their formula.

The paper prints 248.6 where its own formula, with a 256-256-64 MLP over the token axis, gives 248.7;
its parameter counts (1.83, 1.86, 1.88, 1.90) come out up to 0.01 lower without the encoder's head.
"""

import pytest

from edgevlm import ModelInputError, auroraedge_config, profile


@pytest.mark.parametrize(("fusion", "gmacs", "params"), [
    ("none", 248.7, 1.826), ("cross", 250.5, 1.852), ("decoder", 261.9, 1.870), ("combined", 263.8, 1.896),
])  # fmt: skip
def test_prefill_of_64_visual_and_28_text_tokens(fusion, gmacs, params):
    counted = profile(auroraedge_config(fusion=fusion), num_text_tokens=28)
    assert counted.macs_linear / 1e9 == pytest.approx(gmacs, abs=0.06)
    assert counted.num_params / 2**30 == pytest.approx(params, abs=0.0006)


def test_no_text():
    with pytest.raises(ModelInputError):
        profile(auroraedge_config(), num_text_tokens=0)
