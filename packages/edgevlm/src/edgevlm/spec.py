"""What an edge model's artifact says about it."""

from dataclasses import dataclass
from typing import Self

from edgevlm.errors import ModelInputError
from edgevlm.model.configuration import CHOICES, VISION_TYPES, EdgeVlmConfig

_CHOICES = {
    "vision_encoder": tuple(VISION_TYPES.values()),
    **{name: CHOICES[name] for name in ("compressor", "fusion", "fusion_order")},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EdgeModelSpec:
    """Architecture in short.

    Attributes:
        vision_encoder: "siglip2", "siglip" or "clip".
        compressor: As in `EdgeVlmConfig`, like all that follow.
        fusion: See there.
        num_visual_tokens: Visual tokens of an image before the compressor.
        num_compressed_tokens: Visual tokens of an image after it.
        fusion_order: See there.
        num_fusion_layers: See there; at least 1.
    """

    vision_encoder: str
    compressor: str
    fusion: str
    num_visual_tokens: int
    num_compressed_tokens: int
    fusion_order: str = "serial"
    num_fusion_layers: int = 1

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelInputError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        if not 1 <= self.num_compressed_tokens <= self.num_visual_tokens:
            raise ModelInputError(
                f"num_compressed_tokens: expected 1 to {self.num_visual_tokens}, got {self.num_compressed_tokens}"
            )
        if self.num_fusion_layers < 1:
            raise ModelInputError(f"num_fusion_layers: expected at least 1, got {self.num_fusion_layers}")

    @classmethod
    def of(cls, config: EdgeVlmConfig) -> Self:
        """The spec of a model with this configuration."""
        return cls(
            vision_encoder=config.vision_encoder,
            compressor=config.compressor,
            fusion=config.fusion,
            num_visual_tokens=int(config.num_visual_tokens or 0),
            num_compressed_tokens=config.num_compressed_tokens,
            fusion_order=config.fusion_order,
            num_fusion_layers=config.num_fusion_layers,
        )
