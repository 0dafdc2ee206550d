"""The edge model of vlmpress-edgevlm (AuroraEdge-V), known by its class name and its configuration alone.

Its compressor mixes tokens along their axis, so that what it leaves has no grid: a square where the number
is one, else a single row. NaFlex images are single rows too, their padding left as it is.
"""

import math
from typing import Any

from stagetrain.families.family import Call, Family, features_of
from stagetrain.families.views import View

_NAFLEX = "siglip2_vision_model"


class EdgeVlmFamily(Family):
    """`EdgeVlmForConditionalGeneration`."""

    model_class = "EdgeVlmForConditionalGeneration"

    def views(self, model: Any, call: Call) -> dict[int, list[View]]:
        """See `Family.views`."""
        pixels, features, config = call.get("pixel_values"), features_of(call, "image"), model.config
        most = self.most_tokens(model)
        if features is not None:
            counts, valid = (
                [len(each) for each in features],
                getattr(call["mm_encoder_outputs"]["image"], "valid", None),
            )
        else:
            counts, valid = [most] * (0 if pixels is None else len(pixels)), call.get("pixel_attention_mask")
        if config.compressor != "none" or config.vision_config.model_type != _NAFLEX or valid is None:
            return {config.image_token_id: [_square(count) for count in counts]}
        num_valid = valid.sum(1).tolist()
        views = [
            View(rows=1, columns=min(own, count), num_end=count - min(own, count))
            for own, count in zip(num_valid, counts, strict=True)
        ]
        return {config.image_token_id: views}

    def most_tokens(self, model: Any) -> int:
        """See `Family.most_tokens`; without a compressor of its own the model's two numbers are the same."""
        return int(model.config.num_compressed_tokens)


def _square(num_tokens: int) -> View:
    side = math.isqrt(num_tokens)
    return View(rows=side, columns=side) if side * side == num_tokens else View(rows=1, columns=num_tokens)
