from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
    Qwen2VLTextConfig,
    Qwen3Config,
    Qwen3Model,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from stagetrain.attaching.attention_probe import allowed_keys, attention_probabilities, mean_attention, visual_scores
from stagetrain.errors import PoolingUnsupportedError

SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "attention_dropout": 0.5,
    "pad_token_id": 0,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES, head_dim=16)),
    "qwen2_vl": lambda: Qwen2VLTextModel(Qwen2VLTextConfig(**SIZES, rope_parameters=MROPE)),
}
NUM_TOKENS = 9


def make_decoder(name: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    decoder = DECODERS[name]().eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    decoder.set_attn_implementation(attention)
    return decoder


def make_mask(kind: str) -> torch.Tensor | None:
    causal = torch.ones(2, 1, NUM_TOKENS, NUM_TOKENS).tril().bool()
    if kind == "none":
        return None
    if kind == "left":
        return torch.tensor([[1] * NUM_TOKENS, [0] * 3 + [1] * 6])
    if kind == "right":
        return torch.tensor([[1] * NUM_TOKENS, [1] * 6 + [0] * 3])
    causal[0, :, 6:, 4:6] = False  # packed: the second segment does not see the first
    return causal


def positions_of(name: str) -> torch.Tensor:
    plain = torch.arange(NUM_TOKENS).expand(2, -1)
    # Three components that differ, as an image's do.
    return torch.stack([plain, plain // 2, plain % 3]) if name == "qwen2_vl" else plain


@pytest.mark.parametrize("kind", ["none", "left", "right", "packed"])
@pytest.mark.parametrize("name", DECODERS)
def test_probabilities_are_those_of_eager_attention(name: str, kind: str) -> None:
    torch.manual_seed(1)
    embeddings, mask, positions = torch.randn(2, NUM_TOKENS, 32), make_mask(kind), positions_of(name)
    eager = make_decoder(name, "eager")
    wide = mask
    if mask is not None and mask.dim() == 4:
        wide = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    output = eager(
        inputs_embeds=embeddings,
        attention_mask=wide,
        position_ids=positions,
        output_attentions=True,
        output_hidden_states=True,
    )
    decoder = make_decoder(name)
    tables = decoder.rotary_emb(embeddings, position_ids=positions)
    columns = torch.tensor([[8, 3, 5, 4], [5, 4, 3, 5]])
    for index, layer in enumerate(decoder.layers):
        got = attention_probabilities(layer, output.hidden_states[index], tables, mask, columns)
        for row in range(2):
            expected = output.attentions[index][row][:, columns[row]]
            torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-6)
        mean = mean_attention(layer, output.hidden_states[index], tables, mask, columns)
        torch.testing.assert_close(mean, got.mean(1), rtol=1e-5, atol=1e-6)


def test_all_forms_of_a_mask_say_the_same() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    columns = torch.tensor([[3, 2], [0, 4]])
    shape = torch.Size((2, 5))
    wanted = [[[0, 0, 1, 1, 0], [0, 0, 1, 0, 0]], [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]]
    whole = torch.ones(5, 5).tril().bool() & mask.bool()[:, None, None]
    added = torch.where(whole, 0.0, torch.finfo(torch.float32).min)
    for form in (mask, whole, added, torch.nn.functional.pad(whole, (3, 0), value=True)):
        assert allowed_keys(form, shape, columns)[:, 0].long().tolist() == wanted
    assert allowed_keys(None, shape, columns)[:, 0].sum(2).tolist() == [[4, 3], [1, 5]]


def test_a_token_that_may_attend_to_nothing_gives_zeros() -> None:
    decoder = make_decoder("llama")
    states = torch.randn(1, 4, 32)
    tables = decoder.rotary_emb(states, position_ids=torch.arange(4)[None])
    mask = torch.tensor([[0, 0, 1, 1]])
    got = attention_probabilities(decoder.layers[0], states, tables, mask, torch.tensor([[0, 3]]))
    assert not got[:, :, 0].any()
    torch.testing.assert_close(got[:, :, 1].sum(-1), torch.ones(1, 4))


def test_the_model_is_left_as_it_was() -> None:
    decoder = make_decoder("qwen2").train()
    states = torch.randn(1, 4, 32, requires_grad=True)
    tables = decoder.rotary_emb(states, position_ids=torch.arange(4)[None])
    before = dict(vars(decoder.layers[1].self_attn))
    columns = torch.tensor([[3]])
    first = attention_probabilities(decoder.layers[1], states, tables, None, columns)
    assert not first.requires_grad
    # No dropout, though the layer trains.
    assert torch.equal(first, attention_probabilities(decoder.layers[1], states, tables, None, columns))
    assert vars(decoder.layers[1].self_attn) == before
    assert decoder.config._attn_implementation == "sdpa"


UNITS = [
    [-1, 0, 0, 0, 0, -1, -1, 1, 1],
    [-1, -1, -1, 2, 2, 2, -1, -1, -1],
]
ASKING = [[1, 0, 0, 0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 1, 0, 1]]


def reference_scores(probabilities: torch.Tensor, mask: torch.Tensor, row: int) -> list[float]:
    """Scores of one row token by token, from all probabilities [B, H, T, T] and a bool mask [B, 1, T, T]."""
    scores = []
    for token, unit in enumerate(UNITS[row]):
        values = []
        for query in range(NUM_TOKENS):
            is_last = UNITS[row][query] >= 0 and unit not in UNITS[row][query + 1 :] and UNITS[row][query] == unit
            asks = bool(ASKING[row][query]) and UNITS[row][query] < 0
            real = bool(mask[row, 0, query, query])
            if (asks or is_last) and real and bool(mask[row, 0, query, token]):
                values.append(probabilities[row, :, query, token].mean().item())
        scores.append(sum(values) / len(values) if unit >= 0 and values else 0.0)
    return scores


@pytest.mark.parametrize("kind", ["none", "left", "right", "packed"])
def test_scores_are_those_of_a_token_by_token_reference(kind: str) -> None:
    torch.manual_seed(2)
    decoder, mask = make_decoder("qwen2_vl"), make_mask(kind)
    states, positions = torch.randn(2, NUM_TOKENS, 32), positions_of("qwen2_vl")
    tables = decoder.rotary_emb(states, position_ids=positions)
    columns = torch.arange(NUM_TOKENS).expand(2, -1)
    probabilities = attention_probabilities(decoder.layers[1], states, tables, mask, columns)
    full = allowed_keys(mask, torch.Size((2, NUM_TOKENS)), columns)
    units, asking = torch.tensor(UNITS), torch.tensor(ASKING).bool()
    scores = visual_scores(decoder.layers[1], states, tables, mask, units, asking)
    for row in range(2):
        torch.testing.assert_close(scores[row], torch.tensor(reference_scores(probabilities, full, row)))
    assert bool((scores[units >= 0] > 0)[1:].all())


def test_a_row_alone_and_with_padding_beside_another_has_the_same_scores() -> None:
    torch.manual_seed(3)
    decoder = make_decoder("llama")
    states, units, asking = (
        torch.randn(1, 6, 32),
        torch.tensor([[-1, 0, 0, 0, -1, -1]]),
        torch.tensor([[1, 0, 0, 0, 1, 1]]),
    )
    tables = decoder.rotary_emb(states, position_ids=torch.arange(6)[None])
    alone = visual_scores(decoder.layers[0], states, tables, None, units, asking.bool())
    for side in ("left", "right"):
        pad = (3, 0) if side == "left" else (0, 3)
        wide = torch.cat([torch.randn(1, 3, 32), states] if side == "left" else [states, torch.randn(1, 3, 32)], 1)
        both = torch.cat([wide, torch.randn(1, 9, 32)])
        mask = torch.stack([torch.nn.functional.pad(torch.ones(6), pad), torch.ones(9)]).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        # Padding asks as text does: it must not count.
        rows = [torch.nn.functional.pad(value, pad, value=fill)[0] for value, fill in ((units, -1), (asking, 1))]
        other = torch.tensor([-1, 1, 1, 1, 1, 1, -1, -1, -1])
        scores = visual_scores(
            decoder.layers[0],
            both,
            decoder.rotary_emb(both, position_ids=positions),
            mask,
            torch.stack([rows[0], other]),
            torch.stack([rows[1], other < 0]).bool(),
        )
        own = scores[0, 3:] if side == "left" else scores[0, :6]
        torch.testing.assert_close(own, alone[0], rtol=1e-5, atol=1e-7)


def test_a_layer_or_a_mask_of_another_kind_is_refused() -> None:
    decoder = make_decoder("llama")
    states, columns = torch.randn(1, 4, 32), torch.tensor([[3]])
    tables = decoder.rotary_emb(states, position_ids=torch.arange(4)[None])
    with pytest.raises(PoolingUnsupportedError, match="got Linear"):
        attention_probabilities(torch.nn.Linear(2, 2), states, tables, None, columns)
    with pytest.raises(PoolingUnsupportedError, match="got 3 dimensions"):
        attention_probabilities(decoder.layers[0], states, tables, torch.ones(1, 4, 4), columns)
