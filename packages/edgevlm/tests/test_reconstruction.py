"""Reconstruction of images from compressed tokens, beside slow references."""

import math

import pytest
import torch

from edgevlm import EdgeVlmConfig, EdgeVlmForConditionalGeneration, ModelInputError
from edgevlm.model.reconstruction import place_waves, squared_error, targets_of

KINDS = ("features", "pixels")
ENCODERS = ("clip", "siglip", "siglip2")


def labelled(tiny, model, **changes):
    inputs = tiny.inputs(model, **changes)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    return inputs | {"labels": labels}


def slow_patches(model, inputs):
    """Every valid patch's values by image, as (place in the raster, values)."""
    pixels = inputs["pixel_values"]
    if pixels.ndim == 3:
        counts = inputs["pixel_attention_mask"].sum(1).tolist()
        return [[(place, image[place]) for place in range(count)] for image, count in zip(pixels, counts, strict=True)]
    side, patch = pixels.shape[-1] // 8, 8
    images = []
    for image in pixels:
        patches = []
        for row in range(side):
            for column in range(side):
                cut = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                patches.append((row * side + column, torch.cat([channel.flatten() for channel in cut])))
        images.append(patches)
    return images


def slow_error(model, inputs, kind):
    """The loss written out, one value after the other."""
    vision = {name: inputs[name] for name in ("pixel_attention_mask", "spatial_shapes") if name in inputs}
    features, _ = model.model.patch_features(inputs["pixel_values"], **vision)
    images = model.model.get_image_features(inputs["pixel_values"], **vision)
    predicted = model.model.reconstruction(images.pooler_output, vision.get("spatial_shapes"))
    of_images = []
    for number, patches in enumerate(slow_patches(model, inputs)):
        of_patches = []
        for place, values in patches:
            wanted = features[number, place] if kind == "features" else values
            mean = sum(wanted.tolist()) / len(wanted)
            variance = sum((value - mean) ** 2 for value in wanted.tolist()) / len(wanted)
            wanted = [(value - mean) / math.sqrt(variance + 1e-5) for value in wanted.tolist()]
            got = predicted[number, place].tolist()
            of_patches.append(sum((one - other) ** 2 for one, other in zip(got, wanted, strict=True)) / len(wanted))
        of_images.append(sum(of_patches) / len(of_patches))
    return sum(of_images) / len(of_images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vision", ENCODERS)
@pytest.mark.parametrize("compressor", ["mlp", "conv"])
def test_the_loss_is_that_of_the_slow_reference(tiny, kind, vision, compressor):
    model = tiny.edge(vision=vision, reconstruction=kind, reconstruction_loss_weight=0.25, compressor=compressor)
    plain = tiny.edge(vision=vision, compressor=compressor)
    plain.load_state_dict(model.state_dict(), strict=False)
    inputs = labelled(tiny, model, questions=((7, 8, 9), (8, 9, 10), (9, 10, 11)))
    output, alone = model(**inputs), plain(**inputs)
    assert output.auxiliary_loss.item() == pytest.approx(0.25 * slow_error(model, inputs, kind), rel=1e-4)
    assert output.loss.item() == pytest.approx(alone.loss.item() + output.auxiliary_loss.item(), rel=1e-5)
    assert torch.equal(output.logits, alone.logits)
    assert alone.auxiliary_loss is None
    del inputs["labels"]
    assert model(**inputs).auxiliary_loss is None


def test_padding_takes_no_part(tiny):
    """What stands in padded patches, and how much padding there is, changes nothing."""
    model = tiny.edge(vision="siglip2", reconstruction="pixels")
    inputs = labelled(tiny, model, questions=((7, 8), (8, 9), (9, 10)))
    expected = model(**inputs).auxiliary_loss
    changed = inputs["pixel_values"].clone()
    changed[inputs["pixel_attention_mask"] == 0] = 1e3
    assert torch.equal(model(**inputs | {"pixel_values": changed}).auxiliary_loss, expected)
    alone = [
        model(**{name: value[number : number + 1] for name, value in inputs.items()}).auxiliary_loss
        for number in range(3)
    ]
    assert expected.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trains_tower", [True, False])
def test_the_gradient_reaches_head_compressor_and_projector_alone(tiny, kind, trains_tower):
    model = tiny.edge(reconstruction=kind).train()
    model.model.vision_tower.requires_grad_(trains_tower)
    model(**labelled(tiny, model)).auxiliary_loss.backward()
    reached = {
        name.split(".")[1]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert reached == {"reconstruction", "compressor", "multi_modal_projector"}
    head = model.model.reconstruction
    assert all(parameter.grad.any() for name, parameter in head.named_parameters() if name != "k_proj.bias")


def test_the_towers_own_gradient_is_that_of_the_answers(tiny):
    """A tower that trains does so for the answers alone, as without reconstruction."""
    without, grads = tiny.edge(), []
    model = tiny.edge(reconstruction="features")
    model.load_state_dict(without.state_dict(), strict=False)
    for each in (without, model):
        each.train()(**labelled(tiny, each)).loss.backward()
        grads.append([parameter.grad for parameter in each.model.vision_tower.parameters()])
    for one, other in zip(*grads, strict=True):
        assert one is other is None or torch.allclose(one, other, atol=1e-7)


def test_without_a_weight_of_answers_the_language_model_is_not_run(tiny):
    model = tiny.edge(reconstruction="features", text_loss_weight=0.0).train()
    calls = []
    for part in (model.model.language_model, model.lm_head, model.model.fusion):
        part.register_forward_hook(lambda *_: calls.append(1))
    inputs = labelled(tiny, model)
    output = model(**inputs)
    assert (calls, output.logits) == ([], None)
    assert torch.equal(output.loss, output.auxiliary_loss)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.compressor.parameters())
    text = {name: inputs[name] for name in ("input_ids", "labels")}
    text["input_ids"] = text["input_ids"].masked_fill(text["input_ids"] == model.config.image_token_id, 7)
    output = model(**text)
    assert (output.loss.item(), output.auxiliary_loss, calls) == (0.0, None, [])
    output.loss.backward()
    assert model(input_ids=text["input_ids"]).logits is not None


def test_text_alone_has_the_loss_of_its_answers(tiny):
    model = tiny.edge(reconstruction="pixels", text_loss_weight=0.5).train()
    ids = torch.tensor([[2, 5, 7, 8, 9, 10]])
    output = model(input_ids=ids, labels=ids)
    model.config.text_loss_weight = 1.0
    assert output.loss.item() == pytest.approx(0.5 * model(input_ids=ids, labels=ids).loss.item())
    assert output.auxiliary_loss is None


def test_packed_questions_share_the_error_of_their_image(tiny):
    """An image whose questions share a row counts once; a row of text alone adds nothing."""
    model = tiny.edge(reconstruction="features")
    inputs = tiny.inputs(model)
    ids, num = inputs["input_ids"], inputs["input_ids"].shape[1]
    packed = torch.cat((ids, ids[:, -4:]), dim=1)
    mask = torch.ones(num + 4, num + 4, dtype=torch.bool).tril()
    mask[num:, num - 4 : num] = False
    positions = torch.cat((torch.arange(num), torch.arange(num - 4, num)))[None]
    labels = torch.full_like(packed, -100)
    labels[0, [num - 1, num + 3]] = packed[0, [num - 1, num + 3]]
    shared = {"pixel_values": inputs["pixel_values"]}
    output = model(input_ids=packed, attention_mask=mask[None, None], position_ids=positions, labels=labels, **shared)
    single = torch.full_like(ids, -100)
    single[0, -1] = ids[0, -1]
    alone = model(input_ids=ids, labels=single, **shared)
    assert torch.equal(output.auxiliary_loss, alone.auxiliary_loss)
    assert output.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)


def test_an_accumulated_batch_shares_its_weight_by_answer_tokens(tiny):
    model = tiny.edge(reconstruction="features")
    inputs = labelled(tiny, model)
    one, part = model(**inputs), model(**inputs, num_items_in_batch=torch.tensor(8))
    assert part.auxiliary_loss.item() == pytest.approx(one.auxiliary_loss.item() * 2 / 8)
    assert part.loss.item() == pytest.approx(one.loss.item() * 2 / 8, rel=1e-5)


def test_bfloat16(tiny):
    model = tiny.edge(reconstruction="pixels").to(torch.bfloat16).train()
    inputs = labelled(tiny, model)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    output = model(**inputs)
    assert output.auxiliary_loss.dtype == torch.float32
    output.loss.backward()
    exact = tiny.edge(reconstruction="pixels")
    exact.load_state_dict(model.state_dict())
    expected = exact(**inputs | {"pixel_values": inputs["pixel_values"].float()}).auxiliary_loss
    assert output.auxiliary_loss.item() == pytest.approx(expected.item(), rel=0.05)


def test_the_head_comes_and_goes(tiny, tmp_path, recwarn):
    model = tiny.edge(reconstruction="features", text_loss_weight=0.0)
    model.save_pretrained(tmp_path / "with")
    loaded = EdgeVlmForConditionalGeneration.from_pretrained(tmp_path / "with")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    without, report = EdgeVlmForConditionalGeneration.from_pretrained(
        tmp_path / "with", reconstruction="none", output_loading_info=True
    )
    ids = torch.tensor([[2, 5, 7, 8]])
    output = without(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:])
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert without.model.reconstruction is None
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    without.save_pretrained(tmp_path / "without")
    assert not any("reconstruction" in name for name in without.state_dict())
    torch.manual_seed(0)
    fresh, report = EdgeVlmForConditionalGeneration.from_pretrained(
        tmp_path / "without", reconstruction="pixels", output_loading_info=True
    )
    assert not report["missing_keys"]
    head = fresh.model.reconstruction
    assert head.linear_1.weight.std().item() == pytest.approx(1 / math.sqrt(32), rel=0.1)
    assert torch.equal(head.token_norm.weight, torch.ones(32))
    assert head.slot.weight.std().item() == pytest.approx(0.125, rel=0.3)
    assert torch.equal(fresh.model.compressor.linear_1.weight, model.model.compressor.linear_1.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_learns_from_many_tokens_more_than_from_one(tiny, kind):
    """The loss is 1 for a constant guess; 16 tokens tell all of a 4 x 4 grid, one tells little."""
    errors = []
    for num_compressed in (16, 1):
        model = tiny.edge(fusion="none", reconstruction=kind, text_loss_weight=0.0, num_compressed=num_compressed)
        model.train().model.vision_tower.requires_grad_(False)
        inputs = labelled(tiny, model, questions=((7, 8),) * 8)
        trained = [*model.model.compressor.parameters(), *model.model.reconstruction.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            optimizer.step()
        errors.append(loss.item())
    assert errors[0] < 0.8 * errors[1] < 0.8


def test_places_are_of_the_images_own_grid(tiny):
    waves = place_waves(torch.tensor([[2, 3], [4, 4]]), (4, 4), 16, torch.zeros(1))
    assert waves.shape == (2, 16, 36)
    half = torch.tensor(0.5 * math.pi)
    # Patch 4 of 2 x 3 is at row 1.5 of 2 and column 1.5 of 3.
    angles = [0.75 * math.pi, half, 4.5 / 16 * math.pi]
    assert torch.allclose(waves[0, 4].view(3, 12)[:, 0], torch.tensor(angles).sin(), atol=1e-6)
    assert torch.allclose(waves[0, 4].view(3, 12)[:, 6], torch.tensor(angles).cos(), atol=1e-6)
    model = tiny.edge(reconstruction="features")
    assert targets_of(model.config, torch.randn(2, 16, 16), torch.zeros(2, 3, 32, 32)).shape == (2, 16, 16)
    assert squared_error(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([[True, False]])).item() == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reconstruction": "sounds"}, "reconstruction: expected one of"),
        ({"reconstruction": "features", "compressor": "none", "num_compressed_tokens": 16}, "without a compressor"),
        ({"text_loss_weight": -1.0}, "text_loss_weight: expected a number from 0, got -1"),
        ({"reconstruction_loss_weight": math.nan}, "reconstruction_loss_weight: expected a number from 0, got nan"),
    ],
)
def test_impossible_losses_are_refused(tiny, fields, message):
    settings = {"num_compressed_tokens": 4, "vision_config": tiny.vision_config(), "text_config": tiny.text_config()}
    with pytest.raises(ModelInputError, match=message):
        EdgeVlmConfig(**settings | fields)
