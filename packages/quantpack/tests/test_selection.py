import pytest

from quantpack.selection import is_embedding, is_linear_weight, part_of

LINEAR = [
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "language_model.model.layers.11.mlp.down_proj.weight",
    "vision_tower.encoder.layers.1.mlp.fc1.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "visual.merger.mlp.0.weight",
    "multi_modal_projector.linear_1.weight",
    "model.compressor.fc1.weight",
]
KEPT = [
    "model.language_model.embed_tokens.weight",
    "lm_head.weight",
    "language_model.lm_head.weight",
    "vision_tower.vision_model.embeddings.position_embedding.weight",
    "vision_tower.vision_model.embeddings.patch_embedding.weight",
    "model.visual.patch_embed.proj.weight",
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "model.norm.weight",
    "encoder.block.0.relative_attention_bias.weight",
    "model.queries",
]


@pytest.mark.parametrize("name", LINEAR)
def test_linear_weights_are_quantized(name: str) -> None:
    assert is_linear_weight(name, (8, 8))
    assert not is_linear_weight(name, (8,))
    assert not is_linear_weight(name, (8, 3, 2, 2))


@pytest.mark.parametrize("name", KEPT)
def test_tables_heads_and_patch_embeddings_are_kept(name: str) -> None:
    assert not is_linear_weight(name, (8, 8))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", "vision"),
        ("model.vision_tower.embeddings.class_embedding", "vision"),
        ("model.visual.merger.mlp.0.weight", "vision"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "language"),
        ("language_model.model.embed_tokens.weight", "language"),
        ("lm_head.weight", "language"),
        ("model.layers.0.mlp.up_proj.weight", "language"),
        ("model.norm.weight", "language"),
        ("multi_modal_projector.linear_1.weight", "other"),
        ("model.multi_modal_projector.linear_1.bias", "other"),
        ("model.fusion.decoder.layers.0.self_attn.q_proj.weight", "other"),
        ("model.compressor.fc1.weight", "other"),
    ],
)
def test_parts(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head.weight", True),
        ("model.language_model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("model.vision_tower.embeddings.position_embedding.weight", False),
        ("model.visual.patch_embed.proj.weight", False),
        ("model.language_model.layers.0.mlp.up_proj.weight", False),
        ("lm_head.bias", False),
    ],
)
def test_embeddings(name: str, expected: bool) -> None:
    assert is_embedding(name) == expected
