"""stagetrain's compression inside the edge model's language model: training and generating."""

from typing import Any

import pytest
import torch

from stagetrain import CompressionSetting, attach

FUSIONS = ("none", "cross", "decoder", "combined")
MODES = ("contiguous", "uncompressed")
POOLS = ("average", "average_2d")
PAD, BOS, IMAGE, NUM_VISUAL = 0, 2, 60, 36
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def images_of(model: Any, num_images: int = 2) -> dict[str, torch.Tensor]:
    """Random images; NaFlex ones do not fill their grids."""
    generator = torch.Generator().manual_seed(1)
    if model.config.vision_encoder != "siglip2":
        return {"pixel_values": torch.randn(num_images, 3, 48, 48, generator=generator)}
    shapes = torch.tensor([(6, 6), (4, 5), (3, 7)][:num_images])
    return {
        "pixel_values": torch.randn(num_images, NUM_VISUAL, 3 * 8 * 8, generator=generator),
        "pixel_attention_mask": (torch.arange(NUM_VISUAL) < shapes.prod(1, keepdim=True)).int(),
        "spatial_shapes": shapes,
    }


def batch(*rows: list[int], left: bool = False) -> dict[str, torch.Tensor]:
    """Rows of tokens in which -1 stands for an image, padded on a side, with labels of their last two tokens."""
    full = [
        [BOS, *(token for part in row for token in ([IMAGE] * NUM_VISUAL if part == -1 else [part]))] for row in rows
    ]
    width = max(map(len, full))
    padded = [[PAD] * (width - len(ids)) + ids if left else ids + [PAD] * (width - len(ids)) for ids in full]
    ids = torch.tensor(padded)
    mask = (ids != PAD).long()
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(full):
        end = width if left else len(row)
        labels[number, end - 2 : end] = ids[number, end - 2 : end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_stride_of_one_is_the_plain_model_bit_for_bit(edge_model: Any, fusion: str, mode: str, layer: int) -> None:
    model = edge_model(fusion, "clip", mode)
    inputs = batch([-1, 5, 6, 7], [8, -1, 9, 10, 11]) | images_of(model)
    plain = model(**inputs)
    plain.loss.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    attachment = attach(model)
    for pool in POOLS:
        attachment.set(CompressionSetting(layer=layer, stride=1, compressor=pool))
        model.zero_grad()
        outputs = model(**inputs)
        outputs.loss.backward()
        assert torch.equal(outputs.logits, plain.logits)
        assert torch.equal(outputs.loss, plain.loss)
        for name, value in model.named_parameters():
            assert (value.grad is None) == (name not in gradients)
            assert value.grad is None or torch.equal(value.grad, gradients[name]), name
    attachment.detach()
    assert torch.equal(model(**inputs).logits, plain.logits)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("tower", ["clip", "siglip2"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_cached_generation_is_uncached_generation(
    edge_model: Any, fusion: str, mode: str, tower: str, pool: str
) -> None:
    model = edge_model(fusion, tower, mode)
    inputs = batch([-1, 5, 6, 7], [8, -1, 9, 10, 11], left=True) | images_of(model)
    del inputs["labels"]
    attachment = attach(model)
    for layer in (0, 1):
        attachment.set(CompressionSetting(layer=layer, stride=4, compressor=pool))
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": PAD}
        with torch.no_grad():
            cached = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
            tokens, mask = inputs["input_ids"], inputs["attention_mask"]
            for logits, token in zip(cached.logits, cached.sequences[:, inputs["input_ids"].shape[1] :].T, strict=True):
                whole = model(**{**inputs, "input_ids": tokens, "attention_mask": mask, "use_cache": False}).logits
                assert whole.shape[1] < tokens.shape[1], "nothing was compressed"
                torch.testing.assert_close(logits, whole[:, -1], **TOLERANCE)
                tokens = torch.cat([tokens, token[:, None]], 1)
                mask = torch.cat([mask, torch.ones_like(token)[:, None]], 1)
    attachment.detach()


def test_text_alone_loses_the_same_in_a_mixed_batch(edge_model: Any) -> None:
    for fusion in FUSIONS:
        model = edge_model(fusion)
        attachment = attach(model)
        attachment.set(CompressionSetting(layer=1, stride=4))
        mixed = batch([-1, 5, 6, 7], [12, 13, 14, 15]) | images_of(model, 1)
        alone = batch([12, 13, 14, 15])
        logits = model(**mixed).logits
        own = model(**alone).logits[0]
        end = int((mixed["attention_mask"][1] == 1).sum())
        torch.testing.assert_close(logits[1, :end], own, **TOLERANCE)
        attachment.detach()
