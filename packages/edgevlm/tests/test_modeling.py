import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from edgevlm import EdgeVlmConfig, EdgeVlmForConditionalGeneration, ModelInputError
from edgevlm.model.fusion_cache import FusionState

FUSIONS = ["none", "cross", "decoder", "combined"]
MODES = ["contiguous", "uncompressed"]
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@torch.inference_mode()
def stepwise_logits(model, inputs, num_prompt, chunk=1, **masks):
    """Logits from a prefill of `num_prompt` tokens, then `chunk` tokens at a time."""
    ids, cache, pieces, start = inputs["input_ids"], None, [], 0
    images = {name: value for name, value in inputs.items() if name != "input_ids"}
    for end in [*range(num_prompt, ids.shape[1], chunk), ids.shape[1]]:
        seen = {name: mask[:, :end] for name, mask in masks.items()}
        output = model(input_ids=ids[:, start:end], past_key_values=cache, **images, **seen)
        pieces.append(output.logits)
        cache, images, start = output.past_key_values, {}, end
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vision", ["clip", "siglip", "siglip2"])
@pytest.mark.parametrize("text", ["llama", "qwen2"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_prefill_and_decode_equal_one_forward(tiny, fusion, text, vision, mode):
    model = tiny.edge(fusion, vision, text, position_mode=mode)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12, 13, 3), (7, 8, 9, 11, 6, 14, 15, 3)])
    whole = model(**inputs).logits
    torch.testing.assert_close(stepwise_logits(model, inputs, 10), whole, **TOLERANCE)
    torch.testing.assert_close(stepwise_logits(model, inputs, 8, chunk=3), whole, **TOLERANCE)
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, whole, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_changes_nothing(tiny, fusion, side, mode):
    model = tiny.edge(fusion, position_mode=mode)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12), (7, 8, 9, 11, 6, 14)])
    alone = [
        model(input_ids=inputs["input_ids"][row : row + 1, :end], pixel_values=inputs["pixel_values"][row : row + 1])
        for row, end in ((0, 9), (1, 12))
    ]
    short, long = inputs["input_ids"][0, :9], inputs["input_ids"][1]
    pad, ones = torch.zeros(3, dtype=torch.long), torch.ones(9, dtype=torch.long)
    order = (lambda a, b: torch.cat((a, b))) if side == "left" else (lambda a, b: torch.cat((b, a)))
    batch = {
        "input_ids": torch.stack((order(pad, short), long)),
        "pixel_values": inputs["pixel_values"],
    }
    mask = torch.stack((order(pad, ones), torch.ones(12, dtype=torch.long)))
    logits = model(**batch, attention_mask=mask).logits
    keep = slice(3, None) if side == "left" else slice(None, 9)
    torch.testing.assert_close(logits[0, keep], alone[0].logits[0], **TOLERANCE)
    torch.testing.assert_close(logits[1], alone[1].logits[0], **TOLERANCE)
    if side == "left":
        torch.testing.assert_close(
            stepwise_logits(model, batch, 10, attention_mask=mask)[:, 3:], logits[:, 3:], **TOLERANCE
        )


def packed(model, questions, pixel_values):
    """One row: shared prefix, then the questions, each seeing the prefix and itself; padded at the end."""
    prefix = [2, 5] + [4] * model.config.num_compressed_tokens
    ids, positions, segments = list(prefix), list(range(len(prefix))), [-1] * len(prefix)
    for number, question in enumerate(questions):
        ids += question
        positions += range(len(prefix), len(prefix) + len(question))
        segments += [number] * len(question)
    ids, positions, segments = [*ids, 0, 0], [*positions, 0, 0], torch.tensor([*segments, 98, 99])
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    sees = (segments[:, None] == segments) | ((segments == -1) & (segments[:, None] < 90))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": (causal & sees)[None, None],
        "pixel_values": pixel_values,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_equals_single(tiny, fusion, mode):
    model = tiny.edge(fusion, position_mode=mode)
    questions = [[7, 8, 9, 10, 6, 12], [7, 8, 11], [8, 8, 9, 17, 6]]
    pixels = tiny.inputs(model)["pixel_values"]
    model.train()
    logits = model(**packed(model, questions, pixels)).logits
    assert logits.isfinite().all()
    start = 2 + model.config.num_compressed_tokens
    for question in questions:
        alone = model(**tiny.inputs(model, [question])).logits
        torch.testing.assert_close(logits[0, start : start + len(question)], alone[0, -len(question) :], **TOLERANCE)
        start += len(question)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_token_sees_a_later_one(tiny, fusion):
    model = tiny.edge(fusion)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12, 13, 14)])
    before = model(**inputs).logits
    for place in range(6, inputs["input_ids"].shape[1]):
        changed = inputs | {"input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][0, place] = 16
        after = model(**changed).logits
        assert torch.equal(after[0, :place], before[0, :place])
        assert not torch.allclose(after[0, place], before[0, place])


def test_no_token_of_another_packed_question_is_seen(tiny):
    model = tiny.edge("combined")
    pixels = tiny.inputs(model)["pixel_values"]
    before = model(**packed(model, [[7, 8, 9], [10, 11, 12]], pixels)).logits
    after = model(**packed(model, [[16, 17, 18], [10, 11, 12]], pixels)).logits
    torch.testing.assert_close(after[0, 9:12], before[0, 9:12], **TOLERANCE)


@pytest.mark.parametrize("fusion", FUSIONS[1:])
def test_fusion_starts_silent_and_matters_when_open(tiny, fusion):
    silent = tiny.edge(fusion, open_gates=False)
    plain = tiny.edge("none")
    plain.load_state_dict({name: v for name, v in silent.state_dict().items() if ".fusion." not in name})
    inputs = tiny.inputs(silent)
    assert torch.equal(silent(**inputs).logits, plain(**inputs).logits)
    for name, parameter in silent.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
    assert not torch.allclose(silent(**inputs).logits, plain(**inputs).logits)


def test_fusion_sees_the_uncompressed_image(tiny):
    """The compressor is switched off, so an image can only act through fusion."""
    for fusion, differs in (("none", False), ("cross", True), ("decoder", True)):
        model = tiny.edge(fusion)
        for parameter in model.model.compressor.parameters():
            parameter.data.zero_()
        one, other = (model(**tiny.inputs(model, seed=seed)).logits for seed in (3, 4))
        assert torch.allclose(one, other) != differs


def test_fusion_decoder_equals_the_whole_layer_over_image_and_text(tiny):
    """Slow reference: the layer over concat[V; T] with all queries, text positions sliced out."""
    model = tiny.edge("decoder").model
    decoder = model.fusion.decoder[0]
    visual, text = torch.randn(2, 16, 32), torch.randn(2, 5, 32)
    allowed = torch.ones(21, 21, dtype=torch.bool).tril()
    allowed[:, :16] = True
    rotary = model.language_model.rotary_emb(text, torch.arange(21)[None])
    whole = decoder.layer(
        torch.cat((visual, text), 1), attention_mask=allowed.expand(2, 1, -1, -1), position_embeddings=rotary
    )[:, 16:]
    expected = text + torch.tanh(torch.tensor(0.7)) * (whole - text)
    state = FusionState(torch.tensor([4, 4]), torch.tensor([1, 1]), torch.tensor([12, 12]))
    split = [tuple(table[:, part] for table in rotary) for part in (slice(16), slice(16, None))]
    model.fusion.remember(state, visual, torch.ones(2, 16, dtype=torch.bool), split[0])
    fused = model.fusion(text, split[1], state, allowed[16:, 16:].expand(2, -1, -1))
    torch.testing.assert_close(fused, expected, **TOLERANCE)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_text_only_and_mixed_batches(tiny, fusion):
    model = tiny.edge(fusion)
    question = torch.tensor([[2, 5, 7, 8, 9, 10, 6, 12, 13]])
    text = {"input_ids": question}
    whole = model(**text).logits
    torch.testing.assert_close(stepwise_logits(model, text, 6), whole, **TOLERANCE)
    plain = model.model.language_model(input_ids=question).last_hidden_state
    torch.testing.assert_close(whole, model.lm_head(plain), **TOLERANCE)
    image = tiny.inputs(model, [(7, 8, 9)])
    mixed = {"input_ids": torch.cat((question, image["input_ids"])), "pixel_values": image["pixel_values"]}
    logits = model(**mixed).logits
    torch.testing.assert_close(logits[:1], whole, **TOLERANCE)
    torch.testing.assert_close(logits[1:], model(**image).logits, **TOLERANCE)
    torch.testing.assert_close(stepwise_logits(model, mixed, 7), logits, **TOLERANCE)


def test_several_images_in_a_row(tiny):
    model = tiny.edge("combined", position_mode="uncompressed")
    pixels = tiny.inputs(model, [(7,), (7,), (7,)])["pixel_values"]
    image = [4] * 4
    two, one = [2, *image, 7, *image, 8, 9], [2, 5, 7, 8, 9, 10, *image, 8, 9]
    batch = {"input_ids": torch.tensor([two, one]), "pixel_values": pixels}
    logits = model(**batch).logits
    alone = model(input_ids=batch["input_ids"][1:], pixel_values=pixels[2:]).logits
    torch.testing.assert_close(logits[1:], alone, **TOLERANCE)
    torch.testing.assert_close(stepwise_logits(model, batch, 11), logits, **TOLERANCE)


def test_naflex_padding_changes_nothing(tiny):
    model = tiny.edge("combined", "siglip2")
    inputs = tiny.inputs(model)
    before = model(**inputs).logits
    noisy = inputs | {"pixel_values": inputs["pixel_values"].clone()}
    noisy["pixel_values"][0, 12:] = 100
    torch.testing.assert_close(model(**noisy).logits, before, **TOLERANCE)
    shorter = inputs | {name: inputs[name][:, :13] for name in ("pixel_values", "pixel_attention_mask")}
    torch.testing.assert_close(model(**shorter).logits, before, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vision", ["clip", "siglip", "siglip2"])
def test_save_and_load(tiny, tmp_path, vision, dtype):
    config = tiny.edge("combined", vision).config
    model = EdgeVlmForConditionalGeneration._from_config(config, dtype=dtype).eval()
    assert model.dtype == dtype
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype).eval()
    assert isinstance(loaded, EdgeVlmForConditionalGeneration)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    inputs = tiny.inputs(model)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, EdgeVlmConfig)
    assert (config.fusion, config.num_visual_tokens, config.tie_word_embeddings) == ("combined", 16, True)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_part(tiny, checkpointing):
    model = tiny.edge("combined").train()
    if checkpointing:
        model.activation_checkpointing_enable()
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12, 3)])
    loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == 4, -100)).loss
    loss.backward()
    dead = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # The tower's last norm is after the features CLIP gives.
    assert all("vision_tower" in name for name in dead), dead
    zero = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.abs().sum() > 0]
    assert not [name for name in zero if "fusion" in name or "projector" in name or "language_model" in name], zero


def test_silent_gates_and_compressor_get_gradients(tiny):
    model = tiny.edge("combined", open_gates=False).train()
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12, 3)])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for name, parameter in model.named_parameters():
        # Behind the attention's own gate, the feed-forward's still gets one.
        if name.endswith("gate") or "compressor.linear_2.weight" in name:
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("vision", ["clip", "siglip2"])
def test_generate_equals_full_forwards(tiny, vision, beams):
    model = tiny.edge("combined", vision)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6), (7, 8, 9, 11, 6)])
    mask = torch.ones_like(inputs["input_ids"])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    cached = model.generate(**inputs, attention_mask=mask, **settings)
    uncached = model.generate(**inputs, attention_mask=mask, use_cache=False, **settings)
    assert torch.equal(cached, uncached)


def test_printed_initialisation_is_standard_normal(tiny):
    model = tiny.edge("combined", init="normal", open_gates=False).model
    for weight in (
        model.multi_modal_projector.linear_1.weight,
        model.compressor.linear_1.weight,
        model.fusion.cross[0].q_proj.weight,
    ):
        assert weight.std().item() == pytest.approx(1, abs=0.2)
    assert model.fusion.decoder[0].layer.mlp.up_proj.weight.std() < 0.3


@pytest.mark.parametrize(
    ("ids", "images"), [([[2, 4, 4, 4, 7]], 1), ([[2, 4, 4, 4, 4, 7]], 2), ([[2, 7, 7]], 1), ([[2, 4, 4, 4, 4]], None)]
)
def test_images_and_placeholders_must_match(tiny, ids, images):
    model = tiny.edge()
    pixels = {} if images is None else {"pixel_values": torch.zeros(images, 3, 32, 32)}
    with pytest.raises(ModelInputError):
        model(input_ids=torch.tensor(ids), **pixels)


@pytest.mark.parametrize("changes", [{"num_compressed_tokens": 17}, {"num_compressed_tokens": 0},
                                     {"compressor": "none", "num_compressed_tokens": 4},
                                     {"fusion": "other"}, {"vision_config": {"model_type": "vit"}}])  # fmt: skip
def test_bad_configuration(tiny, changes):
    with pytest.raises(Exception, match=r"expected|Invalid|must be|fusion"):
        EdgeVlmConfig(**({"vision_config": tiny.vision_config(), "text_config": tiny.text_config()} | changes))


def test_default_configuration_is_the_paper_s():
    config = EdgeVlmConfig()
    assert (config.vision_encoder, config.num_visual_tokens, config.num_compressed_tokens) == ("siglip2", 256, 64)
    assert config.tie_word_embeddings
    with torch.device("meta"):
        model = EdgeVlmForConditionalGeneration(config)
    # NOTES: 1.896 x 2^30 with combined fusion (the paper prints 1.90).
    assert sum(p.numel() for p in model.parameters()) / 2**30 == pytest.approx(1.896, abs=0.001)
