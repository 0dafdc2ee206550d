"""Images encoded outside the model, with a number of visual tokens of their own each."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgevlm import ModelInputError
from edgevlm.model.image_output import ImageOutput

FUSIONS = ["none", "cross", "decoder", "combined"]
MODES = ["contiguous", "uncompressed"]
VISIONS = ["clip", "siglip", "siglip2"]
TOLERANCE = {"rtol": 0, "atol": 1e-5}
PAD, BOS, IMAGE = 0, 2, 4
WORDS = [7, 8, 9, 10, 6, 12, 13]


def plain(tiny, fusion="combined", mode="contiguous", vision="clip"):
    """An edge model without a compressor: 16 placeholders an image."""
    return tiny.edge(fusion, vision, num_compressed=16, compressor="none", position_mode=mode)


def reduced(model, inputs, kept):
    """Image i keeps the tokens at `kept[i]`; handed over as a reducer would."""
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    features, valid = model.model.patch_features(*(inputs.get(name) for name in names))
    tokens = [model.model.multi_modal_projector(image[places]) for image, places in zip(features, kept, strict=True)]
    output = model.model.image_output(features, valid, tokens, [torch.tensor(places) for places in kept])
    return {"image": output}


@torch.inference_mode()
def stepwise(model, ids, images, num_prompt, mask=None):
    cache, pieces, start = None, [], 0
    for end in [*range(num_prompt, ids.shape[1]), ids.shape[1]]:
        given = {"mm_encoder_outputs": images} if start == 0 else {}
        seen = {} if mask is None else {"attention_mask": mask[:, :end]}
        output = model(input_ids=ids[:, start:end], past_key_values=cache, **given, **seen)
        pieces.append(output.logits)
        cache, start = output.past_key_values, end
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_tokens_handed_over_change_nothing(tiny, fusion, mode, vision):
    model = plain(tiny, fusion, mode, vision)
    inputs = tiny.inputs(model, [WORDS, WORDS[::-1]])
    images = reduced(model, inputs, [list(range(16))] * 2)
    # Padding is a zero for the language model, not what the projector makes of a padded patch.
    images["image"].pooler_output = [
        tokens * valid[:, None] for tokens, valid in zip(images["image"].tokens, images["image"].valid, strict=True)
    ]
    expected = model(**inputs).logits
    torch.testing.assert_close(model(inputs["input_ids"], mm_encoder_outputs=images).logits, expected, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_image_s_tokens_against_the_language_model_itself(tiny, fusion, mode):
    """Slow reference: embeddings and positions of one row put together by hand."""
    model = plain(tiny, fusion, mode)
    inputs = tiny.inputs(model, [WORDS])
    kept = [0, 3, 5, 10, 12]
    images = reduced(model, inputs, [kept])
    ids = torch.tensor([[BOS, 5, *[IMAGE] * 5, *WORDS]])
    whole = model(ids, mm_encoder_outputs=images, use_cache=False).logits
    core = model.model
    text = torch.tensor([[BOS, 5, *WORDS]])
    embeds = core.get_input_embeddings()(text)
    if core.fusion is not None:
        # The fusion knows nothing of what the language model sees: the same as beside all 16 tokens.
        seen = []
        handle = core.fusion.register_forward_hook(lambda module, args, output: seen.append(output))
        model(**inputs)
        handle.remove()
        embeds = seen[0]
    embeds = torch.cat((embeds[:, :2], images["image"].tokens[0][None], embeds[:, 2:]), dim=1)
    positions = torch.arange(14)[None]
    if mode == "uncompressed":
        positions = torch.tensor([[0, 1, *(2 + place for place in kept), *range(18, 25)]])
    hidden = core.language_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=torch.ones(1, 14, dtype=torch.long)
    ).last_hidden_state
    torch.testing.assert_close(whole, model.lm_head(hidden), **TOLERANCE)
    torch.testing.assert_close(stepwise(model, ids, images, 10), whole, **TOLERANCE)


@pytest.mark.parametrize("vision", ["clip", "siglip2"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_rows_of_several_unlike_images(tiny, fusion, mode, vision):
    model = plain(tiny, fusion, mode, vision)
    inputs = tiny.inputs(model, [WORDS], images=3)
    kept = [[0, 2, 4], [1], [3, 4, 5, 7, 9]]
    images = reduced(model, inputs, kept)
    two = [BOS, *[IMAGE] * 3, 7, IMAGE, 8, 9, 10]
    one = [BOS, 5, *[IMAGE] * 5, 11, 12]
    ids = torch.tensor([two, one, [BOS, 5, 6, 7, 8, 9, 10, 11, 12]])
    logits = model(ids, mm_encoder_outputs=images).logits
    first, second = (
        model(ids[row : row + 1], mm_encoder_outputs={"image": images["image"].select(index)}).logits
        for row, index in ((0, [0, 1]), (1, [2]))
    )
    text = model(ids[2:]).logits
    torch.testing.assert_close(logits, torch.cat((first, second, text)), **TOLERANCE)
    torch.testing.assert_close(stepwise(model, ids, images, 7), logits, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
def test_left_padding_changes_nothing(tiny, mode):
    model = plain(tiny, "combined", mode)
    inputs = tiny.inputs(model, [WORDS, WORDS])
    images = reduced(model, inputs, [[0, 5], [1, 2, 3, 8, 9]])
    rows = [[PAD] * 3 + [BOS, IMAGE, IMAGE, 7, 8, 9], [BOS, *[IMAGE] * 5, 7, 8, 9]]
    ids = torch.tensor(rows)
    mask = (ids != PAD).long()
    logits = model(ids, mm_encoder_outputs=images, attention_mask=mask).logits
    alone = model(ids[:1, 3:], mm_encoder_outputs={"image": images["image"].select([0])}).logits
    torch.testing.assert_close(logits[:1, 3:], alone, **TOLERANCE)
    torch.testing.assert_close(stepwise(model, ids, images, 7, mask)[:, 3:], logits[:, 3:], **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_equals_single(tiny, fusion, mode):
    model = plain(tiny, fusion, mode)
    images = reduced(model, tiny.inputs(model, [WORDS], images=2), [[0, 5, 6], [1, 9]])
    prefix = [BOS, IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE]
    questions = [[7, 8, 9, 10], [11, 12]]
    ids = torch.tensor([prefix + questions[0] + questions[1]])
    positions = torch.tensor([[*range(11), 7, 8]])
    mask = torch.ones(13, 13, dtype=torch.bool).tril()
    mask[11:, 7:11] = False
    model.train()
    logits = model(ids, mm_encoder_outputs=images, position_ids=positions, attention_mask=mask[None, None]).logits
    for question, part in zip(questions, (slice(7, 11), slice(11, 13)), strict=True):
        alone = model(torch.tensor([prefix + question]), mm_encoder_outputs=images, use_cache=False).logits
        torch.testing.assert_close(logits[:, part], alone[:, 7:], **TOLERANCE)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("handed_over", [False, True])
def test_beams_over_rows_of_several_images(tiny, fusion, handed_over):
    """Rows are repeated for beams as wholes: a row's images stay together and in order."""
    model = plain(tiny, fusion)
    inputs = tiny.inputs(model, [WORDS], images=3)
    kept = [[0, 2, 4, 5], [1, 3], [3, 4, 5]] if handed_over else [list(range(16))] * 3
    rows = [[BOS, *[IMAGE] * len(kept[0]), 7, *[IMAGE] * len(kept[1]), 8], [BOS, 5, *[IMAGE] * len(kept[2]), 8]]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])

    def images(index):
        if handed_over:
            return {"mm_encoder_outputs": {"image": reduced(model, inputs, kept)["image"].select(index)}}
        return {"pixel_values": inputs["pixel_values"][index]}

    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2, "pad_token_id": PAD}
    settings["suppress_tokens"] = [IMAGE]
    with torch.inference_mode():
        both = model.generate(ids, attention_mask=(ids != PAD).long(), **images([0, 1, 2]), **settings)
        uncached = model.generate(
            ids, attention_mask=(ids != PAD).long(), use_cache=False, **images([0, 1, 2]), **settings
        )
        alone = [
            model.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row)), **images(index), **settings)
            for row, index in zip(rows, ([0, 1], [2]), strict=True)
        ]
    assert torch.equal(both, uncached)
    for row, single in zip(both, alone, strict=True):
        assert torch.equal(row[-5:], single[0, -5:])


def test_gradients_reach_the_encoder_through_both_ways(tiny):
    model = plain(tiny, "cross").train()
    inputs = tiny.inputs(model, [WORDS])
    output = reduced(model, inputs, [[0, 1, 2]])["image"]
    output.last_hidden_state.retain_grad()
    ids = torch.tensor([[BOS, 5, *[IMAGE] * 3, *WORDS]])
    model(ids, mm_encoder_outputs={"image": output}, labels=ids.masked_fill(ids == IMAGE, -100)).loss.backward()
    assert output.last_hidden_state.grad.abs().sum() > 0
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


def output_of(model, inputs, **changes):
    output = reduced(model, inputs, [[0, 1, 2]])["image"]
    fields = {name: getattr(output, name) for name in ("last_hidden_state", "pooler_output", "valid", "places")}
    return ImageOutput(**(fields | changes))


@pytest.mark.parametrize("changes", [
    {"pooler_output": None}, {"pooler_output": [torch.zeros(0, 32)], "places": None},
    {"pooler_output": [torch.zeros(17, 32)], "places": None}, {"last_hidden_state": None},
    {"last_hidden_state": torch.zeros(1, 15, 32)}, {"places": None}, {"places": [torch.arange(4)]},
])  # fmt: skip
def test_bad_outputs(tiny, changes):
    model = plain(tiny, "combined", "uncompressed")
    inputs = tiny.inputs(model, [WORDS])
    count = 3 if changes.get("pooler_output") is None else len(changes["pooler_output"][0])
    ids = torch.tensor([[BOS, *[IMAGE] * count, *WORDS]])
    with pytest.raises(ModelInputError, match="expected"):
        model(ids, mm_encoder_outputs={"image": output_of(model, inputs, **changes)})


def test_outputs_of_others_are_enough_without_fusion(tiny):
    model = plain(tiny, "none")
    inputs = tiny.inputs(model, [WORDS])
    tokens = output_of(model, inputs).tokens
    ids = torch.tensor([[BOS, *[IMAGE] * 3, *WORDS]])
    bare = BaseModelOutputWithPooling(pooler_output=tokens)
    expected = model(ids, mm_encoder_outputs={"image": output_of(model, inputs)}).logits
    assert torch.equal(model(ids, mm_encoder_outputs={"image": bare}).logits, expected)


@pytest.mark.parametrize("rows", [
    [[IMAGE, IMAGE, 7], [IMAGE, IMAGE, 7]], [[IMAGE] * 3 + [7], [7, 8, 9, 10]], [[IMAGE] * 5, [7] * 5],
])  # fmt: skip
def test_placeholders_must_be_whole_images(tiny, rows):
    model = plain(tiny, "none")
    images = reduced(model, tiny.inputs(model, [WORDS], images=2), [[0, 1, 2], [5]])
    with pytest.raises(ModelInputError, match=r"images of \[3, 1\] tokens"):
        model(torch.tensor(rows), mm_encoder_outputs=images)


def test_pixels_and_outputs_exclude_each_other(tiny):
    model = plain(tiny, "none")
    inputs = tiny.inputs(model, [WORDS])
    with pytest.raises(ModelInputError, match="beside them"):
        model(**inputs, mm_encoder_outputs=reduced(model, inputs, [[0]]))
