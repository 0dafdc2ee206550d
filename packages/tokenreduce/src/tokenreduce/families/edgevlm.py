"""The edge model of vlmpress-edgevlm (AuroraEdge-V): a reducer in the compressor's place.

Views are reduced between the vision encoder and the projector; the model's fusion goes on seeing all
of an image's tokens. Padding of SigLIP2-NaFlex is never part of a view, so its placeholders go as well.

Shape suffixes: I images, N visual tokens of an image with its padding, S tokens of the encoder, E its channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tokenreduce.errors import GridError, PlaceholderError, UnsupportedModelError
from tokenreduce.families.attention import attention_received
from tokenreduce.families.family import Encoded, Family
from tokenreduce.families.llava import project
from tokenreduce.families.tower import attention_of, entering
from tokenreduce.reducing import ReducedGrid, VisualGrid

_NAFLEX = "siglip2_vision_model"
_CLIP = "clip_vision_model"


@dataclass(kw_only=True, slots=True, eq=False)
class _Images:
    """What the fusion and the positions need beside the reduced tokens.

    Attributes:
        features: [I, N, E].
        valid: bool [I, N], False at padding.
        places: For each image the N-index that each reduced token stands for; filled by `embed`.
    """

    features: torch.Tensor
    valid: torch.Tensor
    places: list[torch.Tensor] = field(default_factory=list)


class EdgeVlmFamily(Family):
    """`EdgeVlmForConditionalGeneration` without a compressor; its towers are SigLIP2-NaFlex, SigLIP and CLIP."""

    model_class = "EdgeVlmForConditionalGeneration"
    image_inputs = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    gives_attention = True

    def check(self, model: Any) -> None:
        """See `Family.check`.

        Raises:
            UnsupportedModelError: The model has a compressor.
        """
        config = model.config
        if config.compressor != "none":
            raise UnsupportedModelError(
                f"compressor: expected 'none', a reducer takes its place, got {config.compressor!r}; "
                "build the model with compressor='none'"
            )
        if config.vision_config.model_type != _NAFLEX:
            height, width = _sides(config)
            if height * width != config.num_visual_tokens:
                raise GridError(
                    f"num_visual_tokens: expected {height * width} of a {height} x {width} grid, "
                    f"got {config.num_visual_tokens}"
                )

    def encode(
        self, model: Any, arguments: dict[str, Any], *, needs_attention: bool = False, pixel_factor: int = 1
    ) -> Encoded:
        """See `Family.encode`."""
        inputs: list[Any] = [arguments.get(name) for name in self.image_inputs]
        naflex = model.config.vision_config.model_type == _NAFLEX
        if naflex and any(value is None for value in inputs):
            raise PlaceholderError("pixel_attention_mask, spatial_shapes: expected both beside images, got none")
        layer = -1 if model.config.vision_feature_layer is None else model.config.vision_feature_layer
        with entering(attention_of(model.model.vision_tower, layer) if needs_attention else None) as entered:
            features, valid = model.model.patch_features(*inputs)
        num_images, num_visual = valid.shape
        sides = _naflex_sides(inputs[2], valid) if naflex else [_sides(model.config)] * num_images
        # CLIP's towers have a class token before the patches, which the model drops.
        num_special = int(model.config.vision_config.model_type == _CLIP)
        attention = _received(*entered[0], sides, num_special) if entered else [None] * num_images
        grids = [
            VisualGrid(features=image[: height * width].unflatten(0, (height, width)), attention=seen)
            for image, (height, width), seen in zip(features, sides, attention, strict=True)
        ]
        return Encoded(
            grids=grids,
            images=range(num_images),
            num_placeholders=[num_visual] * num_images,
            num_fixed_tokens=[0] * num_images,
            context=_Images(features=features, valid=valid),
        )

    def embed(self, model: Any, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
        """See `Family.embed`."""
        encoded.context.places = [
            _raster_places(grid.places, view.features.shape[1])
            for grid, view in zip(reduced, encoded.grids, strict=True)
        ]
        return project(model, reduced)

    def hand_over(self, model: Any, call: dict[str, Any], encoded: Encoded, tokens: list[torch.Tensor]) -> None:
        """See `Family.hand_over`; the model makes the output itself, with what its fusion sees."""
        images = encoded.context
        output = model.model.image_output(images.features, images.valid, tokens, images.places)
        call["mm_encoder_outputs"] = {"image": output}


def _sides(config: Any) -> tuple[int, int]:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side


def _naflex_sides(spatial_shapes: torch.Tensor, valid_IN: torch.Tensor) -> list[tuple[int, int]]:  # noqa: N803
    """Rows and columns of each image, whose patches must be the first of its N."""
    num_images, num_visual = valid_IN.shape
    if tuple(spatial_shapes.shape) != (num_images, 2):
        raise PlaceholderError(f"spatial_shapes: expected [{num_images}, 2], got {list(spatial_shapes.shape)}")
    sizes_I1 = spatial_shapes.prod(dim=1, keepdim=True)  # noqa: N806
    expected_IN = torch.arange(num_visual, device=valid_IN.device) < sizes_I1  # noqa: N806
    fits = (sizes_I1[:, 0] <= num_visual) & (spatial_shapes > 0).all(dim=1) & (valid_IN == expected_IN).all(dim=1)
    if not bool(fits.all()):
        image = int((~fits).nonzero()[0])
        raise GridError(
            f"spatial_shapes: expected the sides of a grid that pixel_attention_mask fills, at most {num_visual} "
            f"patches, got {spatial_shapes[image].tolist()} and {int(valid_IN[image].sum())} patches in image {image}"
        )
    return [(height, width) for height, width in spatial_shapes.tolist()]


def _received(
    layer: Any,
    hidden_ISE: torch.Tensor,  # noqa: N803
    sides: Sequence[tuple[int, int]],
    num_special: int,
) -> list[torch.Tensor | None]:
    """Attention that each patch of each image receives, [H, W]; padding, which comes last, gives and gets none."""
    received: list[torch.Tensor | None] = []
    for hidden_SE, (height, width) in zip(hidden_ISE, sides, strict=True):  # noqa: N806
        own = hidden_SE[None, : num_special + height * width]
        received.append(attention_received(layer, own, height * width)[0].unflatten(0, (height, width)))
    return received


def _raster_places(places_N2: torch.Tensor, width: int) -> torch.Tensor:  # noqa: N803
    """Raster index of mean rows and columns, floored; int64 [N]."""
    row, column = places_N2.double().unbind(1)
    return (row * width + column + 1e-6).floor().long()
