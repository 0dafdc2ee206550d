import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from stagetrain.errors import FeatureCacheError
from stagetrain.loop.feature_cache import cache_vision_features

PLENTY = 1 << 30


@pytest.fixture
def model(make_model):
    made = make_model(2)
    made.model.vision_tower.requires_grad_(False)
    return made


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(4, 15, (5, 9))
    ids[:, 1:5] = 3
    # Twice the same image among five.
    pixels = torch.randn(4, 3, 16, 16)[[0, 1, 2, 1, 3]]
    return {"input_ids": ids, "pixel_values": pixels, "labels": ids}


def gradients(model, batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output.logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_by_one(tower, pixels):
    """Hidden states of the last layer, each image through the tower alone."""
    with torch.no_grad():
        return torch.cat([tower(image[None], output_hidden_states=True).hidden_states[-1] for image in pixels])


@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_those_of_the_model(model, batch, training):
    model.train(training)
    logits, expected = gradients(model, batch)
    with cache_vision_features(model, PLENTY) as cache:
        for _ in range(2):
            cached_logits, cached = gradients(model, batch)
            torch.testing.assert_close(cached_logits, logits, rtol=1e-6, atol=1e-6)
            assert cached.keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(cached[name], gradient, rtol=1e-5, atol=1e-6)
        assert (cache.num_images, cache.num_misses, cache.num_hits) == (4, 4, 6)
        assert model.model.vision_tower.training is training


def test_features_are_bitwise_those_of_an_image_alone(model, batch):
    tower, pixels = model.model.vision_tower, batch["pixel_values"]
    expected = one_by_one(tower, pixels)
    with cache_vision_features(model, PLENTY) as cache:
        for rows in ([0, 1, 2, 3, 4], [4, 2], [3]):
            got = tower(pixels[rows], output_hidden_states=True).hidden_states[-1]
            assert torch.equal(got, expected[rows])
        # What a caller does to the output must not change what is kept.
        tower(pixels, output_hidden_states=True).hidden_states[-1].zero_()
        assert torch.equal(tower(pixels, output_hidden_states=True).hidden_states[-1], expected)
        assert cache.num_misses == 4


def test_limit_is_kept(model, batch):
    tower, pixels = model.model.vision_tower, batch["pixel_values"]
    expected = one_by_one(tower, pixels)
    with cache_vision_features(model, PLENTY) as cache:
        tower(pixels[:1], output_hidden_states=True)
        image_bytes = cache.size_bytes
    assert image_bytes >= expected[0].numel() * 4
    with cache_vision_features(model, 2 * image_bytes + 1) as cache:
        for _ in range(2):
            assert torch.equal(tower(pixels, output_hidden_states=True).hidden_states[-1], expected)
            assert (cache.num_images, cache.size_bytes) == (2, 2 * image_bytes)
        assert cache.num_misses == 4 + 2
    with cache_vision_features(model, 0) as cache:
        assert torch.equal(tower(pixels, output_hidden_states=True).hidden_states[-1], expected)
        assert cache.num_images == 0


def test_new_weights_empty_it(model, batch):
    tower = model.model.vision_tower
    with cache_vision_features(model, PLENTY) as cache:
        model(**batch)
        tower.load_state_dict({name: value * 1.1 for name, value in tower.state_dict().items()})
        expected_misses = cache.num_misses * 2
        model(**batch)
        assert (cache.num_misses, cache.num_images) == (expected_misses, 4)


def test_arguments_are_part_of_the_key(model, batch):
    tower, pixels = model.model.vision_tower, batch["pixel_values"][:1]
    with cache_vision_features(model, PLENTY) as cache:
        assert tower(pixels).hidden_states is None
        assert len(tower(pixels, output_hidden_states=True).hidden_states) == 3
        tower(pixels.flip(-1))
        assert cache.num_misses == 3


def test_dropout_of_a_frozen_tower_is_off(model, batch):
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn.dropout = 0.5
    expected = one_by_one(model.model.vision_tower, batch["pixel_values"])
    model.train()
    with cache_vision_features(model, PLENTY):
        got = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True).hidden_states[-1]
    assert torch.equal(got, expected)


def test_leaves_the_model_as_it_was(model, batch):
    tower = model.model.vision_tower
    before, logits = dict(tower.__dict__), model(**batch).logits
    cache = cache_vision_features(model, PLENTY)
    model(**batch)
    cache.close()
    cache.close()
    assert tower.__dict__.keys() - {"_output_capturing_hooks_installed"} <= before.keys()
    assert "forward" not in tower.__dict__
    assert torch.equal(model(**batch).logits, logits)
    assert (cache.num_images, cache.size_bytes) == (0, 0)


def test_a_tower_that_trains_is_refused(model, batch):
    with cache_vision_features(model, PLENTY):
        model.model.vision_tower.requires_grad_(True)
        with pytest.raises(FeatureCacheError, match="frozen vision tower, got CLIPVisionModel that trains embeddings"):
            model(**batch)
    with pytest.raises(FeatureCacheError, match="frozen"):
        cache_vision_features(model, PLENTY)


def test_a_model_without_a_tower_is_refused():
    with pytest.raises(FeatureCacheError, match="expected a model with vision_tower or visual, got Linear"):
        cache_vision_features(torch.nn.Linear(2, 2), PLENTY)


def test_tensors_of_another_batch_are_refused(model, batch):
    with cache_vision_features(model, PLENTY), pytest.raises(FeatureCacheError, match=r"5 images .* got .*\(2,\)"):
        model.model.vision_tower(batch["pixel_values"], other=torch.zeros(2))


def make_qwen():
    torch.manual_seed(0)
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2, "patch_size": 4}
    text = {
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }
    config = Qwen2VLConfig(vision_config=vision, text_config=text, image_token_id=3, video_token_id=4)
    return Qwen2VLForConditionalGeneration(config).eval()


def test_images_of_different_grids():
    model = make_qwen()
    tower = model.model.visual
    tower.requires_grad_(False)
    grids = torch.tensor([[1, 4, 4], [1, 2, 6], [1, 4, 4]])
    sizes = grids.prod(-1).tolist()
    torch.manual_seed(1)
    patches = list(torch.randn(sum(sizes), 3 * 2 * 4 * 4).split(sizes))
    patches[2] = patches[0]
    alone = [tower(part, grid_thw=grid[None]).pooler_output for part, grid in zip(patches, grids, strict=True)]
    plain = tower(torch.cat(patches), grid_thw=grids).pooler_output
    with cache_vision_features(model, PLENTY) as cache:
        cached = tower(torch.cat(patches), grid_thw=grids).pooler_output
        assert (cache.num_misses, cache.num_hits) == (2, 1)
        # The same values on another grid are another image.
        tower(patches[0], grid_thw=torch.tensor([[1, 2, 8]]))
        assert cache.num_misses == 3
    assert torch.equal(cached, torch.cat(alone))
    torch.testing.assert_close(cached, plain, rtol=1e-6, atol=1e-6)
