import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from edgevlm import EdgeVlmConfig, EdgeVlmForConditionalGeneration, EdgeVlmModel, ModelInputError

TOLERANCE = {"rtol": 0, "atol": 1e-5}


def test_naflex_padding_changes_nothing(tiny):
    model = tiny.edge("combined", "siglip2")
    inputs = tiny.inputs(model)
    before = model(**inputs).logits
    noisy = inputs | {"pixel_values": inputs["pixel_values"].clone()}
    noisy["pixel_values"][0, 12:] = 100
    torch.testing.assert_close(model(**noisy).logits, before, **TOLERANCE)
    shorter = inputs | {name: inputs[name][:, :13] for name in ("pixel_values", "pixel_attention_mask")}
    torch.testing.assert_close(model(**shorter).logits, before, **TOLERANCE)


@pytest.mark.parametrize("changes", [
    {"spatial_shapes": torch.tensor([[4, 4]])}, {"spatial_shapes": torch.tensor([[3, 4], [3, 4]])},
    {"pixel_attention_mask": torch.ones(1, 16)}, {"pixel_attention_mask": torch.tensor([[0] * 4 + [1] * 12])},
    {"pixel_attention_mask": None}, {"spatial_shapes": None}, {"pixel_attention_mask": torch.ones(1, 12)},
])  # fmt: skip
def test_naflex_inputs_must_agree(tiny, changes):
    model = tiny.edge("combined", "siglip2")
    with pytest.raises(ModelInputError, match="expected"):
        model(**tiny.inputs(model) | changes)


@pytest.mark.parametrize("settings", [
    {"compressor": "conv", "fusion_order": "parallel", "num_fusion_layers": 2},
    {"compressor": "maxpool", "fusion": "none"},
])  # fmt: skip
def test_auto_classes(tiny, tmp_path, settings):
    model = tiny.edge(**settings)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert {name: getattr(config, name) for name in settings} == settings
    core = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(core, EdgeVlmModel)
    inputs = tiny.inputs(model)
    assert torch.equal(core(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)


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
