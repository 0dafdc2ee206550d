"""Generation with a cache equals generation without, alone and in a batch."""

from typing import Any

import pytest
import torch

from stagetrain import CompressionSetting, attach

GENERATE = {"do_sample": False, "max_new_tokens": 5, "suppress_tokens": [3, 4]}
SETTINGS = [(0, 2, "average"), (1, 3, "average"), (2, 4, "average_2d"), (0, 4, "average_2d"), (1, 2, "random")]


@pytest.mark.parametrize(("layer", "stride", "compressor"), SETTINGS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_cached_equals_uncached_and_a_row_alone(
    case: Any, layer: int, stride: int, compressor: str, num_beams: int
) -> None:
    model, batch = case.model(), case.batch()
    attach(model).set(CompressionSetting(layer=layer, stride=stride, compressor=compressor))
    cached = model.generate(**case.batch(), **GENERATE, num_beams=num_beams, use_cache=True)
    uncached = model.generate(**case.batch(), **GENERATE, num_beams=num_beams, use_cache=False)
    assert torch.equal(cached, uncached)
    width = batch["input_ids"].shape[1]
    for index, row in enumerate(case.rows):
        alone = model.generate(**case.batch((row,)), **GENERATE, num_beams=num_beams, use_cache=True)
        assert torch.equal(alone[0, -5:], cached[index, width:])
