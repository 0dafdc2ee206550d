"""Flash attention: a stand-in that takes masks as it does, and the kernels themselves where there is a GPU."""

import importlib.util
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence

from stagetrain import CompressionSetting, attach
from stagetrain.errors import PoolingUnsupportedError

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("flash_attn") is None,
    reason="needs a GPU and flash-attn",
)
STAND_IN = "flash_stand_in"


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention row by row on real tokens alone; query [B, H, T, d], key and value [B, G, K, d]."""
    assert attention_mask is None or attention_mask.ndim == 2
    # Flash attention would cut a row where its positions jump.
    assert attention_mask is not None or not _is_packed_sequence(kwargs.get("position_ids"), len(query))
    num_queries, num_keys = query.shape[2], key.shape[2]
    key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for each in (key, value))
    output = torch.zeros_like(query)
    for row in range(len(query)):
        real = torch.ones(num_keys).bool() if attention_mask is None else attention_mask[row].bool()
        asks = real[-num_queries:]
        causal = torch.ones(int(asks.sum()), int(real.sum())).tril(int(real.sum() - asks.sum())).bool()
        scores = query[row][:, asks] @ key[row][:, real].transpose(1, 2) * query.shape[-1] ** -0.5
        output[row][:, asks] = scores.masked_fill(~causal, -torch.inf).softmax(2) @ value[row][:, real]
    return output.transpose(1, 2), None


@pytest.fixture
def stand_in() -> str:
    AttentionInterface.register(STAND_IN, attend)
    AttentionMaskInterface.register(STAND_IN, flash_attention_mask)
    return STAND_IN


@pytest.mark.parametrize("compressor", ["average", "vcc"])
@pytest.mark.parametrize("layer", [0, 1])
def test_masks_of_flash_attention(case: Any, stand_in: str, layer: int, compressor: str) -> None:
    logits, generated = [], []
    for attention in ("sdpa", stand_in):
        model = case.model()
        model.set_attn_implementation({"text_config": attention})
        attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
        with torch.no_grad():
            alone = {**case.batch(("tittt",)), "attention_mask": None}
            logits.append([model(**case.batch()).logits[:, -3:], model(**alone).logits])
        options = {"do_sample": False, "max_new_tokens": 3, "suppress_tokens": [3, 4]}
        generated.append(model.generate(**case.batch(), **options))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(*generated)


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_packed_by_positions_are_refused(cases: dict[str, Any], stand_in: str, layer: int) -> None:
    model = cases["llava"].model()
    model.set_attn_implementation({"text_config": stand_in})
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    with pytest.raises(PoolingUnsupportedError, match="expected a mask with flash attention"):
        model(input_ids=torch.ones(1, 4).long(), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)


def to_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to("cuda", torch.bfloat16) if value.is_floating_point() else value.cuda()
        for name, value in batch.items()
    }


@needs_gpu
@pytest.mark.parametrize("compressor", ["average", "average_2d", "vcc"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rows", [None, ("tittt",)])
def test_flash_attention_agrees_with_sdpa(case: Any, rows: tuple[str, ...] | None, layer: int, compressor: str) -> None:
    logits, generated = [], []
    for attention in ("sdpa", "flash_attention_2"):
        model = case.model().to("cuda", torch.bfloat16)
        model.set_attn_implementation({"text_config": attention})
        attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
        batch = to_gpu(case.batch(rows))
        with torch.no_grad():
            logits.append(model(**batch).logits[:, -3:].float())
        options = {"do_sample": False, "max_new_tokens": 3, "suppress_tokens": [3, 4]}
        generated.append(
            [model.generate(**to_gpu(case.batch(rows)), **options, use_cache=uses) for uses in (True, False)]
        )
    torch.testing.assert_close(*logits, rtol=0.1, atol=0.2)
    assert all(each[0].shape == each[1].shape for each in generated)
