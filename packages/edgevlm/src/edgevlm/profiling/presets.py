"""Known architectures: AuroraEdge-V-2B and the three rivals the paper times it against.

The rivals' numbers are facts of their public configurations ("config.json" of the named checkpoints);
the configuration classes' own defaults are those of larger models.
"""

from collections.abc import Callable
from typing import Any

from transformers import InternVLConfig, LlamaConfig, Qwen2_5_VLConfig, Qwen2VLConfig

from edgevlm.errors import UnknownPresetError
from edgevlm.model.configuration import CHOICES, EdgeVlmConfig

AURORAEDGE = "auroraedge-v-2b"
_QWEN_ROTARY = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_QWEN_VOCABULARY = 151_936


def auroraedge_config(**changes: Any) -> EdgeVlmConfig:
    """AuroraEdge-V-2B: SigLIP2-so400m without head, 256 to 64 visual tokens, Qwen2.5-1.5B.

    Args:
        **changes: Fields of EdgeVlmConfig, such as `fusion`; `compressor="none"` keeps all 256 tokens.
    """
    if changes.get("compressor") == "none":
        changes = {"num_compressed_tokens": 256} | changes
    return EdgeVlmConfig(**changes)


def qwen2_vl_2b_config() -> Qwen2VLConfig:
    """Qwen/Qwen2-VL-2B-Instruct."""
    text = _qwen_text(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12)
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16}
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def qwen2_5_vl_3b_config() -> Qwen2_5_VLConfig:
    """Qwen/Qwen2.5-VL-3B-Instruct."""
    text = _qwen_text(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16)
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)


def internvl2_5_2b_config() -> InternVLConfig:
    """OpenGVLab/InternVL2_5-2B; its InternLM2 1.8B as a Llama of equal shape, which has the same layers.

    InternLM2 keeps queries, keys and values in one matrix; the count and the work are those of three.
    """
    text = LlamaConfig(
        vocab_size=92_553, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16,
        num_key_value_heads=8, rms_norm_eps=1e-5, max_position_embeddings=32_768, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "attention_bias": True, "image_size": 448, "patch_size": 14,
    }  # fmt: skip
    return InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=92_546, image_seq_length=256, tie_word_embeddings=False
    )


def _qwen_text(**shape: int) -> dict[str, Any]:
    return {
        "vocab_size": _QWEN_VOCABULARY, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "max_position_embeddings": 32_768, "rope_parameters": dict(_QWEN_ROTARY), **shape,
    }  # fmt: skip


RIVALS: dict[str, Callable[[], Any]] = {
    "qwen2-vl-2b": qwen2_vl_2b_config,
    "qwen2.5-vl-3b": qwen2_5_vl_3b_config,
    "internvl2.5-2b": internvl2_5_2b_config,
}
PRESETS = (AURORAEDGE, *RIVALS)


def preset_config(name: str, **changes: Any) -> Any:
    """The configuration of a preset.

    Args:
        name: One of `PRESETS`; "auroraedge-v-2b:cross" is the edge model with that fusion.
        **changes: Of the edge model only, as in `auroraedge_config`.

    Raises:
        UnknownPresetError: There is no such preset or fusion.
    """
    base, _, fusion = name.partition(":")
    if base in RIVALS and not fusion:
        return RIVALS[base]()
    if base != AURORAEDGE or (":" in name and fusion not in CHOICES["fusion"]):
        raise UnknownPresetError(f"preset: expected one of {', '.join(PRESETS)} or {AURORAEDGE}:FUSION, got {name!r}")
    return auroraedge_config(**(changes | ({"fusion": fusion} if fusion else {})))
