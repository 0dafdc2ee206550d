"""What compression needs to know of a kind of model."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families.views import UnitGroup, View, place_views, unit_numbers

Call = dict[str, Any]
"""Arguments of a model's forward by their names."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Visual tokens of a batch.

    Attributes:
        groups: Units by shape.
        visual: True at every placeholder, fixed ones too, [B, T].
    """

    groups: tuple[UnitGroup, ...]
    visual: torch.Tensor

    @property
    def units(self) -> torch.Tensor:
        """Number of the unit that each token belongs to, -1 for none, [B, T] int64."""
        return unit_numbers(self.groups, self.visual)


class Family(ABC):
    """One kind of model.

    Attributes:
        model_class: Name of its class with the head; subclasses of it count.
    """

    model_class: ClassVar[str]

    def decoder(self, model: Any) -> Any:
        """The language model, whose `layers` run one after the other and whose `rotary_emb` makes their tables."""
        return model.model.language_model

    def check(self, model: Any) -> None:
        """Refuses a model that tokens cannot be compressed in.

        Raises:
            PoolingUnsupportedError: Its decoder is not made of full attention layers with rotary positions, or its
                images are no grids.
        """
        decoder = self.decoder(model)
        kinds = getattr(decoder.config, "layer_types", None)
        if kinds is None:
            is_full = getattr(decoder.config, "sliding_window", None) is None
        else:
            is_full = set(kinds) == {"full_attention"}
        if not (is_full and hasattr(decoder, "layers") and hasattr(decoder, "rotary_emb")):
            raise PoolingUnsupportedError(
                "pooling: expected a decoder of full attention layers with rotary positions, got"
                f" {type(decoder).__name__}"
            )

    @abstractmethod
    def views(self, model: Any, call: Call) -> dict[int, list[View]]:
        """Grids of the images and videos that come with a call, by their placeholder token; none without any.

        Raises:
            PoolingUnsupportedError: The call does not tell.
        """

    @abstractmethod
    def most_tokens(self, model: Any) -> int | None:
        """Most visual tokens of a unit; None where the model sets no limit."""

    def layout(self, model: Any, call: Call) -> Layout:
        """Where the visual tokens of a call are.

        Raises:
            PoolingUnsupportedError: There is no telling.
        """
        ids = call.get("input_ids")
        if ids is None:
            raise PoolingUnsupportedError("pooling: expected input_ids to find the visual tokens by, got none")
        visual = torch.zeros_like(ids, dtype=torch.bool)
        groups: list[UnitGroup] = []
        for token, views in self.views(model, call).items():
            if views:
                of_token = ids == token
                visual |= of_token
                groups += place_views(of_token, views)
        return Layout(tuple(groups), visual)


def features_of(call: Call, modality: str) -> Any:
    """Features of images or videos that a call brings along already encoded; None if it does not."""
    encoded = (call.get("mm_encoder_outputs") or {}).get(modality)
    return None if encoded is None else encoded.pooler_output


def num_features(features: Any) -> int:
    """Feature vectors in a tensor [..., D] or a list of such."""
    if isinstance(features, torch.Tensor):
        return features[..., 0].numel()
    return sum(num_features(each) for each in features)


def tower_sides(model: Any) -> tuple[int, int]:
    """Rows and columns of the vision tower's patches."""
    vision = model.config.vision_config
    size, patch = vision.image_size, vision.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    return height // patch_height, width // patch_width


def equal_views(view: View, num_units: int | None, features: Any) -> list[View]:
    """Views of units that are all alike, from their number or from their features.

    Raises:
        PoolingUnsupportedError: The features are not a multiple of the view.
    """
    if num_units is not None:
        return [view] * num_units
    if features is None:
        return []
    total = num_features(features)
    if total % len(view):
        raise PoolingUnsupportedError(
            f"pooling: expected images of {view.rows} x {view.columns} visual tokens, got {total} features in all"
        )
    return [view] * (total // len(view))
