"""What an attachment asks of a kind of model.

Shape suffixes: B rows, T columns before, N columns after the reduction, D channels of the language model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokenreduce.reducing import ReducedGrid, VisualGrid


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """The images of a call, as the vision encoder gives them.

    Attributes:
        grids: Views of all images, in the order of their placeholders.
        images: Which image each view belongs to, ascending; an image is what has placeholders of its own.
        num_placeholders: Placeholders each image has in the caller's prompt.
        num_fixed_tokens: Tokens of each image that no reducer can take away and no view counts.
        context: Whatever `embed` and `hand_over` of the same family need again.
    """

    grids: Sequence[VisualGrid]
    images: Sequence[int]
    num_placeholders: Sequence[int]
    num_fixed_tokens: Sequence[int]
    context: Any = None


class Family(ABC):
    """One kind of model: stateless, it never imports the model's own module.

    Attributes:
        model_class: Name of the class a model must be, or be derived from.
        image_inputs: Arguments of a call that describe its images; taken out of the reduced call. The first
            one holds the pixels: None or nothing in it is a call without images.
        video_inputs: Arguments that the model's own video encoder takes, the pixels first; videos stay whole.
        gives_attention: Whether `encode` can fill `VisualGrid.attention`.
        shrinks_pixels: Whether `encode` takes a `pixel_factor` above 1.
        has_coordinates: Whether positions may have three coordinates; then `places` returns some.
    """

    model_class: ClassVar[str]
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    video_inputs: ClassVar[tuple[str, ...]] = ()
    gives_attention: ClassVar[bool] = False
    shrinks_pixels: ClassVar[bool] = False
    has_coordinates: ClassVar[bool] = False

    @abstractmethod
    def check(self, model: Any) -> None:
        """Raises GridError when the model's own configuration leaves no grid, for example with CLS left in."""

    @abstractmethod
    def encode(
        self, model: Any, arguments: dict[str, Any], *, needs_attention: bool = False, pixel_factor: int = 1
    ) -> Encoded:
        """The views of all images in a call's arguments; gradients flow.

        Args:
            model: The model.
            arguments: The call, by name; not changed. Text may be missing from it.
            needs_attention: Whether the views need their attention; only where `gives_attention`.
            pixel_factor: What to divide the images' sides by; only where `shrinks_pixels`.

        Raises:
            GridError: The encoder's tokens do not fill their grid.
            PlaceholderError: An argument is missing or does not fit the others.
        """

    @abstractmethod
    def embed(self, model: Any, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> list[torch.Tensor]:
        """What the language model sees of each image, [N_i, D], from one reduced grid for each view."""

    def hand_over(self, model: Any, call: dict[str, Any], encoded: Encoded, tokens: list[torch.Tensor]) -> None:
        """Puts the images' tokens into the reduced call, whose `image_inputs` are gone already."""
        # A list of ragged parts, as these models' own encoders make it, whatever the type's annotation says.
        ragged: Any = tokens
        outputs = {"image": BaseModelOutputWithPooling(pooler_output=ragged)}
        videos = {name: call[name] for name in self.video_inputs if call.get(name) is not None}
        if self.video_inputs and self.video_inputs[0] in videos:
            # These models refuse raw videos beside images that are encoded already.
            outputs["video"] = model.model.get_video_features(**videos, return_dict=True)
            call.pop(self.video_inputs[0])
        call["mm_encoder_outputs"] = {**(call.get("mm_encoder_outputs") or {}), **outputs}

    def positions(self, model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
        """Positions on the caller's whole prompt where the model does not simply count; None where it does.

        Asked only where the caller gave none. [3, B, T]; text keeps them, a reduced token takes that of the
        placeholder `places` says.
        """
        return None

    def places(self, encoded: Encoded, reduced: Sequence[ReducedGrid]) -> torch.Tensor | None:
        """Which placeholder of its image each token left stands for, int64 over all images; None: does not matter."""
        return None

    def remember_positions(self, model: Any, positions_3BT: torch.Tensor, num_left_B: torch.Tensor) -> None:  # noqa: N803, B027
        """Told after `positions`: so many unpadded tokens are left of each row; decoding has to go on from there."""
