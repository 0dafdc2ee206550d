"""What the model makes of its images: the tokens the language model sees, and those the fusion sees.

Shapes: I images, N visual tokens of an image before and M_i after they were made fewer, D text features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgevlm.errors import ModelInputError


@dataclass
class ImageOutput(BaseModelOutputWithPooling):
    """Images of a batch, in the order of their placeholders; what `mm_encoder_outputs["image"]` holds.

    Whoever makes visual tokens fewer outside the model gets it from `EdgeVlmModel.image_output`.

    Attributes:
        last_hidden_state: Uncompressed projected tokens [I, N, D], zero at padding, which the fusion sees;
            None where there is no fusion.
        pooler_output: What the language model sees, a [M_i, D] of each image, M_i from 1; a list, or one tensor.
        valid: False at padding, bool [I, N]; None: nothing is padding.
        places: The visual token of N that each token stands for, int64 [M_i] of each image; asked for where
            positions follow from it (`position_mode="uncompressed"`) and M_i is not N.
    """

    valid: Tensor | None = None
    places: Sequence[Tensor] | None = None

    def select(self, index: list[int]) -> Self:
        """Images of these indices, which may repeat."""
        seen: Any = [self.tokens[image] for image in index]
        return type(self)(
            last_hidden_state=None if self.last_hidden_state is None else self.last_hidden_state[index],
            pooler_output=seen,
            valid=None if self.valid is None else self.valid[index],
            places=None if self.places is None else [self.places[image] for image in index],
        )

    @property
    def tokens(self) -> list[Tensor]:
        """`pooler_output` as a list.

        Raises:
            ModelInputError: There is none.
        """
        if self.pooler_output is None:
            raise ModelInputError("mm_encoder_outputs: expected an image output with pooler_output, got none")
        return list(self.pooler_output)

    @property
    def num_tokens(self) -> list[int]:
        """M_i of each image.

        Raises:
            ModelInputError: An image has no token left.
        """
        counts = [len(tokens) for tokens in self.tokens]
        if 0 in counts:
            raise ModelInputError(f"mm_encoder_outputs: expected at least 1 token an image, got {counts}")
        return counts

    def places_of(self, num_visual: int, device: torch.device) -> list[Tensor]:
        """`places`; where there are none, each token's own place among all `num_visual`.

        Raises:
            ModelInputError: There are none, and an image has fewer tokens.
        """
        if self.places is not None:
            return [place_m.to(device) for place_m in self.places]
        counts = self.num_tokens
        if set(counts) - {num_visual}:
            raise ModelInputError(
                f"places: expected them beside images of {counts} tokens with position_mode='uncompressed', got none"
            )
        return [torch.arange(num_visual, device=device)] * len(counts)


def image_output_of(value: BaseModelOutputWithPooling, *, num_visual: int, needs_uncompressed: bool) -> ImageOutput:
    """A caller's output, checked.

    Args:
        value: Any output with `pooler_output`; the other fields of `ImageOutput` may be missing.
        num_visual: N.
        needs_uncompressed: Whether a fusion asks for `last_hidden_state`.

    Raises:
        ModelInputError: Something needed is missing, or numbers of images or tokens contradict each other.
    """
    fields = ("last_hidden_state", "pooler_output", "valid", "places")
    output = ImageOutput(**{name: getattr(value, name, None) for name in fields})
    counts = output.num_tokens
    if max(counts, default=0) > num_visual:
        raise ModelInputError(f"mm_encoder_outputs: expected at most {num_visual} tokens an image, got {counts}")
    if output.places is not None and [len(places) for places in output.places] != counts:
        raise ModelInputError(f"places: expected one for each of {counts} tokens of the images, got other numbers")
    if not needs_uncompressed:
        return output
    visual = output.last_hidden_state
    if visual is None or visual.shape[:2] != (len(counts), num_visual):
        got = "none" if visual is None else str(list(visual.shape))
        raise ModelInputError(
            f"last_hidden_state: expected uncompressed [{len(counts)}, {num_visual}, D] for the fusion, got {got}"
        )
    if output.valid is None:
        output.valid = torch.ones(visual.shape[:2], dtype=torch.bool, device=visual.device)
    return output
