"""The parts that every model here is made of, under one name each, and where each kind of model keeps them."""

from typing import Any

VISION, PROJECTOR, COMPRESSOR, FUSION, LANGUAGE, HEAD = (
    "vision_encoder", "projector", "compressor", "fusion", "language_model", "head",
)  # fmt: skip
PARTS = (VISION, PROJECTOR, COMPRESSOR, FUSION, LANGUAGE, HEAD)

_TOWER = {
    "model.vision_tower": VISION,
    "model.multi_modal_projector": PROJECTOR,
    "model.language_model": LANGUAGE,
    "lm_head": HEAD,
}
_QWEN = {
    "model.visual": VISION,
    "model.visual.merger": PROJECTOR,
    "model.language_model": LANGUAGE,
    "lm_head": HEAD,
}
_PATHS = {
    "edgevlm": {**_TOWER, "model.compressor": COMPRESSOR, "model.fusion": FUSION},
    "llava": _TOWER,
    "internvl": _TOWER,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
}


def part_paths(config: Any) -> dict[str, str]:
    """Module path of each part -> its name; a path inside another's is not part of that other."""
    return _PATHS[config.model_type]


def part_of(config: Any, module_name: str) -> str | None:
    """The part a module belongs to; None for what inference does not use."""
    paths = part_paths(config)
    inside = [path for path in paths if module_name == path or module_name.startswith(path + ".")]
    return paths[max(inside, key=len)] if inside else None
