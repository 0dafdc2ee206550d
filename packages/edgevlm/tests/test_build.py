import pytest
import torch
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPVisionModel,
    LlamaForCausalLM,
    Qwen2ForCausalLM,
    Siglip2ImageProcessorPil,
    Siglip2VisionModel,
)

from edgevlm import BuildError, EdgeVlmProcessor, Engine, build, build_from_llava, prefill_macs
from edgevlm.model.grids import averaging_matrix

PROMPT = "what is the shape"


def pooled_llava_logits(llava, inputs, num_compressed):
    """Slow reference: the Llava's own parts, visual tokens averaged, mean positions for them, text keeping its own."""
    parts, ids = llava.model, inputs["input_ids"][0]
    visual = torch.stack(list(llava.get_image_features(inputs["pixel_values"]).pooler_output))[0]
    average = averaging_matrix(visual.shape[0], num_compressed)
    places = torch.arange(len(ids))
    is_image = ids == llava.config.image_token_id
    start = int(is_image.float().argmax())
    pooled_places = start + (average @ torch.arange(visual.shape[0]).float()).floor().long()
    words = parts.get_input_embeddings()(ids)
    end = start + visual.shape[0]
    embeds = torch.cat((words[:start], average @ visual, words[end:]))[None]
    positions = torch.cat((places[:start], pooled_places, places[end:]))[None]
    hidden = parts.language_model(
        inputs_embeds=embeds, position_ids=positions, attention_mask=torch.ones_like(positions)
    ).last_hidden_state
    return llava.lm_head(hidden)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize(("fusion", "compressor"), [("none", "mlp"), ("combined", "mlp"), ("combined", "conv")])
def test_fresh_edge_model_is_the_pooled_llava(tiny, fusion, compressor, layer):
    llava, processor = tiny.llava()
    llava.config.vision_feature_layer = layer
    edge, edge_processor = build_from_llava(
        llava, processor, num_compressed_tokens=4, fusion=fusion, compressor=compressor
    )
    assert edge.config.vision_feature_layer == layer
    inputs = Engine(llava, processor).prepare(tiny.image(), PROMPT)
    edge_inputs = Engine(edge, edge_processor).prepare(tiny.image(), PROMPT)
    assert edge_inputs["input_ids"].shape[1] == inputs["input_ids"].shape[1] - 12
    expected = pooled_llava_logits(llava, inputs, 4)
    torch.testing.assert_close(edge(**edge_inputs).logits, expected, rtol=0, atol=1e-5)


def test_without_compressor_and_fusion_it_is_the_llava(tiny):
    llava, processor = tiny.llava()
    edge, edge_processor = build_from_llava(
        llava, processor, num_compressed_tokens=16, compressor="none", fusion="none"
    )
    inputs = Engine(edge, edge_processor).prepare(tiny.image(), PROMPT)
    torch.testing.assert_close(edge(**inputs).logits, llava(**inputs).logits, rtol=0, atol=1e-5)


def test_fusion_decoder_is_a_copy_not_an_alias(llava):
    edge, _ = build_from_llava(*llava, num_compressed_tokens=4)
    copied, source = edge.model.fusion.decoder[0].layer, edge.model.language_model.layers[0]
    for (name, mine), other in zip(copied.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, other), name
        assert mine.data_ptr() != other.data_ptr()
    original = llava[0].model.language_model.layers[0]
    with torch.no_grad():
        copied.mlp.up_proj.weight.zero_()
    assert source.mlp.up_proj.weight.abs().sum() > 0
    assert original.mlp.up_proj.weight.data_ptr() != source.mlp.up_proj.weight.data_ptr()


def test_seed_decides_the_connectors_and_leaves_the_global_generator(llava):
    before = torch.get_rng_state()
    first, second, other = (build_from_llava(*llava, num_compressed_tokens=4, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model.model.fusion.cross[0].q_proj.weight for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("kind", ["llava", "naflex"])
def test_save_load_engine_and_generate_agree(tiny, tmp_path, kind):
    if kind == "llava":
        edge, processor = build_from_llava(*tiny.llava(), num_compressed_tokens=4)
    else:
        edge, processor = naflex(tiny)
    with torch.no_grad():
        for name, parameter in edge.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.5)
    edge.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), EdgeVlmProcessor)
    engine = Engine.load(tmp_path)
    assert engine.model_type == "edgevlm"
    for image in (tiny.image(size=(50, 20)), None):
        *tokens, finish = engine.generate(image, PROMPT, 8)
        assert finish.num_visual_tokens == (4 if image else 0)
        inputs = engine.prepare(image, PROMPT)
        output = engine.model.generate(
            **inputs, attention_mask=torch.ones_like(inputs["input_ids"]), max_new_tokens=8, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
        assert [token.id for token in tokens] == output[0, inputs["input_ids"].shape[1] :].tolist()
    uncompressed = build_from_llava(*tiny.llava(), num_compressed_tokens=16, compressor="none", fusion="none")
    assert prefill_macs(engine, tiny.image(), PROMPT) > 0
    if kind == "llava":
        plain = build_from_llava(*tiny.llava(), num_compressed_tokens=4, fusion="none")
        assert prefill_macs(Engine(*plain), tiny.image(), PROMPT) < prefill_macs(
            Engine(*uncompressed), tiny.image(), PROMPT
        )


def naflex(tiny):
    vision = Siglip2VisionModel(tiny.vision_config("siglip2"))
    text = Qwen2ForCausalLM(tiny.text_config("qwen2", vocab_size=len(tiny.words) - 1))
    tokenizer = tiny.tokenizer()
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return build(vision, text, processor, tokenizer, num_compressed_tokens=4, seed=0, chat_template=tiny.template)


def test_build_grows_the_vocabulary_and_keeps_the_parts(tiny):
    edge, processor = naflex(tiny)
    assert edge.get_input_embeddings().num_embeddings == len(tiny.words)
    assert edge.lm_head.weight is edge.get_input_embeddings().weight
    assert processor.image_token_id == edge.config.image_token_id
    edge.model.copy_fusion_decoder()


def test_build_takes_a_tower_with_a_head_and_clip(tiny):
    config = tiny.vision_config("siglip2")
    config.vision_use_head = True
    tower = AutoModel.from_config(config)
    text = LlamaForCausalLM(tiny.text_config())
    edge, _ = build(
        tower, text, Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16), tiny.tokenizer(),
        num_compressed_tokens=4,
    )  # fmt: skip
    assert torch.equal(
        edge.model.vision_tower.embeddings.patch_embedding.weight, tower.embeddings.patch_embedding.weight
    )
    clip = CLIPVisionModel(tiny.vision_config())
    edge, _ = build(clip, text, tiny.clip_image_processor(), tiny.tokenizer(), num_compressed_tokens=4)
    assert edge(**tiny.inputs(edge)).logits.isfinite().all()


def test_what_cannot_be_built(llava):
    with pytest.raises(BuildError, match="num_compressed_tokens: expected 1 to 16, got 17"):
        build_from_llava(*llava, num_compressed_tokens=17)
    llava[0].config.vision_feature_select_strategy = "full"
    with pytest.raises(BuildError, match="vision_feature_select_strategy"):
        build_from_llava(*llava, num_compressed_tokens=4)
    llava[0].config.vision_feature_layer = [-2, -1]
    with pytest.raises(BuildError, match="one layer"):
        build_from_llava(*llava, num_compressed_tokens=4)
