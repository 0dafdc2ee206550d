"""The fusion module against slow and obvious references."""

import math

import pytest
import torch

from edgevlm import ModelInputError
from edgevlm.model.fusion_cache import FusionState

TOLERANCE = {"rtol": 0, "atol": 1e-5}
VARIANTS = [("cross", "serial"), ("decoder", "serial"), ("combined", "serial"), ("combined", "parallel")]
NUM_VISUAL, NUM_TEXT = 16, 5


def cross_reference(block, text, visual, valid):
    """One cross block, row by row, head by head."""
    rows = []
    for t, v, keep in zip(text, visual, valid, strict=True):
        v = v[keep]
        queries, keys, values = (
            block.q_proj(block.query_norm(t)),
            *(project(block.visual_norm(v)) for project in (block.k_proj, block.v_proj)),
        )
        size = queries.shape[1] // block.num_heads
        heads = []
        for head in range(block.num_heads):
            part = slice(head * size, (head + 1) * size)
            scores = queries[:, part] @ keys[:, part].T / math.sqrt(size)
            heads.append(scores.softmax(1) @ values[:, part])
        t = t + torch.tanh(block.attention_gate) * block.o_proj(torch.cat(heads, 1))
        hidden = torch.nn.functional.gelu(block.ffn_up(block.ffn_norm(t)))
        rows.append(t + torch.tanh(block.ffn_gate) * block.ffn_down(hidden))
    return torch.stack(rows)


def decoder_reference(blocks, text, visual, valid, rotary):
    """Whole decoder layers over concat[V; T] with an explicit mask; the gate is on the text's way only."""
    length = NUM_VISUAL + NUM_TEXT
    allowed = torch.zeros(len(text), length, length, dtype=torch.bool)
    for row, keep in enumerate(valid):
        for query in range(length):
            allowed[row, query, :NUM_VISUAL] = keep
            for key in range(NUM_VISUAL, query + 1):
                allowed[row, query, key] = True
    for block in blocks:
        whole = block.layer(torch.cat((visual, text), 1), attention_mask=allowed[:, None], position_embeddings=rotary)
        visual, text = whole[:, :NUM_VISUAL], text + torch.tanh(block.gate) * (whole[:, NUM_VISUAL:] - text)
    return text


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("fusion", "order"), VARIANTS)
def test_fusion_equals_whole_layers_over_image_and_text(tiny, fusion, order, number):
    model = tiny.edge(fusion, fusion_order=order, num_fusion_layers=number).model
    for index, gate in enumerate(p for name, p in model.named_parameters() if name.endswith("gate")):
        gate.data.fill_(0.3 + 0.2 * index)
    module = model.fusion
    visual, text = torch.randn(2, NUM_VISUAL, 32), torch.randn(2, NUM_TEXT, 32)
    valid = torch.arange(NUM_VISUAL) < torch.tensor([[NUM_VISUAL], [11]])
    rotary = model.language_model.rotary_emb(text, torch.arange(NUM_VISUAL + NUM_TEXT)[None])
    crossed = text
    for block in module.cross:
        crossed = cross_reference(block, crossed, visual, valid)
    decoded = decoder_reference(module.decoder, text if order == "parallel" else crossed, visual, valid, rotary)
    expected = crossed + decoded - text if order == "parallel" else decoded

    state = FusionState(torch.tensor([4, 4]), torch.tensor([1, 1]), torch.tensor([12, 12]))
    split = [tuple(table[:, part] for table in rotary) for part in (slice(NUM_VISUAL), slice(NUM_VISUAL, None))]
    module.remember(state, visual, valid, split[0])
    causal = torch.ones(2, NUM_TEXT, NUM_TEXT, dtype=torch.bool).tril()
    torch.testing.assert_close(module(text, split[1], state, causal), expected, **TOLERANCE)


@pytest.mark.parametrize(("fusion", "order"), VARIANTS)
def test_starts_silent_and_matters_when_open(tiny, fusion, order):
    settings = {"fusion_order": order, "num_fusion_layers": 2}
    silent = tiny.edge(fusion, open_gates=False, **settings)
    plain = tiny.edge("none")
    plain.load_state_dict({name: v for name, v in silent.state_dict().items() if ".fusion." not in name})
    inputs = tiny.inputs(silent)
    torch.testing.assert_close(silent(**inputs).logits, plain(**inputs).logits, rtol=0, atol=1e-6)
    outputs = []
    for name, parameter in silent.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
            outputs.append(silent(**inputs).logits)
    before = plain(**inputs).logits
    for after in outputs:
        assert not torch.allclose(after, before)
        before = after


def test_sees_the_uncompressed_image(tiny):
    """The compressor is switched off, so an image can only act through fusion."""
    for fusion, differs in (("none", False), ("cross", True), ("decoder", True)):
        model = tiny.edge(fusion)
        for parameter in model.model.compressor.parameters():
            parameter.data.zero_()
        one, other = (model(**tiny.inputs(model, seed=seed)).logits for seed in (3, 4))
        assert torch.allclose(one, other) != differs


def test_decoder_layers_start_as_copies_of_the_first_language_layers(tiny):
    model = tiny.edge("combined", num_fusion_layers=2).model
    model.copy_fusion_decoder()
    for block, layer in zip(model.fusion.decoder, model.language_model.layers, strict=True):
        for mine, other in zip(block.layer.parameters(), layer.parameters(), strict=True):
            assert torch.equal(mine, other)
            assert mine.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("variant", [
    {"num_fusion_layers": 0}, {"num_fusion_layers": 3}, {"fusion_order": "other"}, {"fusion": "other"},
    {"compressor": "other"}, {"position_mode": "other"}, {"init": "other"},
])  # fmt: skip
def test_bad_configuration(tiny, variant):
    with pytest.raises(ModelInputError, match=f"{next(iter(variant))}: expected .*got"):
        tiny.edge(**variant)
