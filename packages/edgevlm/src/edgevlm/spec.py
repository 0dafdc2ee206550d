"""What an edge model's artifact says about it."""

from dataclasses import dataclass
from typing import Self

from edgevlm.errors import ModelInputError
from edgevlm.model.configuration import VISION_TYPES, EdgeVlmConfig

_CHOICES = {
    "vision_encoder": tuple(VISION_TYPES.values()),
    "compressor": ("mlp", "none"),
    "fusion": ("none", "cross", "decoder", "combined"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeModelSpec:
    """Architecture in short: encoder, compressor, fusion, visual tokens before and after the compressor."""

    vision_encoder: str
    compressor: str
    fusion: str
    num_visual_tokens: int
    num_compressed_tokens: int

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelInputError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        if not 1 <= self.num_compressed_tokens <= self.num_visual_tokens:
            raise ModelInputError(
                f"num_compressed_tokens: expected 1 to {self.num_visual_tokens}, got {self.num_compressed_tokens}"
            )

    @classmethod
    def of(cls, config: EdgeVlmConfig) -> Self:
        """The spec of a model with this configuration."""
        return cls(
            vision_encoder=config.vision_encoder,
            compressor=config.compressor,
            fusion=config.fusion,
            num_visual_tokens=int(config.num_visual_tokens or 0),
            num_compressed_tokens=config.num_compressed_tokens,
        )
