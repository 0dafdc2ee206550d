"""Reconstruction: compressed tokens must tell what the image was (Section 7, "More Effective Compression Methods").

A small head looks, from every patch's place, at the image's compressed tokens and predicts the patch: the
encoder's feature of it (the projector's input) or its pixels. It is a training aid; `from_pretrained(directory,
reconstruction="none")` leaves it out.

Targets have zero mean and unit variance in every patch, so that a loss of 1 is that of always predicting the
mean, whatever the encoder. They are constants, and nothing of the loss reaches the encoder: else making
features easy to compress would be an answer too.

Shapes: I images, N visual tokens, M compressed tokens, D text features, E encoder features, C values of a target.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from edgevlm.model.grids import most_square
from edgevlm.model.image_output import ImageOutput

_NUM_WAVES = 6
_NUM_COORDINATES = 3


@dataclass
class EdgeVlmOutput(CausalLMOutputWithPast):
    """Logits and losses.

    Attributes:
        auxiliary_loss: The part of `loss` that is a mean over images and not over answer tokens, weighted as it is
            in `loss`; None without images. StageTrainer weighs it by images.
    """

    auxiliary_loss: Tensor | None = None


class Reconstruction(nn.Module):
    """One cross attention from places of patches to compressed tokens, and an MLP: [I, M, D] -> [I, N, C]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        vision, text = config.vision_config, config.text_config
        self.num_inputs, self.square = int(config.num_visual_tokens), most_square(int(config.num_visual_tokens))
        self.num_heads, num_features = int(text.num_attention_heads), int(text.hidden_size)
        sizes = {"features": vision.hidden_size, "pixels": 3 * vision.patch_size**2}
        self.place = nn.Linear(2 * _NUM_COORDINATES * _NUM_WAVES, num_features)
        self.slot = nn.Embedding(config.num_compressed_tokens, num_features)
        self.token_norm = nn.LayerNorm(num_features)
        self.k_proj = nn.Linear(num_features, num_features)
        self.v_proj = nn.Linear(num_features, num_features)
        self.hidden_norm = nn.LayerNorm(num_features)
        self.linear_1 = nn.Linear(num_features, 4 * num_features)
        self.linear_2 = nn.Linear(4 * num_features, sizes[config.reconstruction])

    def forward(self, tokens_imd: Tensor, shapes_i2: Tensor | None = None) -> Tensor:
        """Predicts every patch; `shapes_i2` as a compressor's."""
        waves = place_waves(shapes_i2, self.square, self.num_inputs, tokens_imd)
        query = self.place(waves).expand(tokens_imd.shape[0], -1, -1)
        tokens = self.token_norm(tokens_imd)
        keys, values = self.k_proj(tokens + self.slot.weight), self.v_proj(tokens)
        heads = (each.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for each in (query, keys, values))
        read = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        hidden = self.hidden_norm(query + read)
        predicted: Tensor = self.linear_2(F.gelu(self.linear_1(hidden)))
        return predicted


def place_waves(shapes_i2: Tensor | None, square: tuple[int, int], num_places: int, like: Tensor) -> Tensor:
    """Sines and cosines of each patch's row, column and place in the raster, all of the image, [I or 1, N, C]."""
    shapes = torch.tensor([square]) if shapes_i2 is None else shapes_i2
    rows, columns = (side[:, None] for side in shapes.to(like.device).unbind(1))
    place_n = torch.arange(num_places, device=like.device)
    within = [(place_n // columns + 0.5) / rows, (place_n % columns + 0.5) / columns]
    places = torch.stack([*within, ((place_n + 0.5) / num_places).expand_as(within[0])], dim=-1)
    angles = places[..., None] * (math.pi * 2.0 ** torch.arange(_NUM_WAVES, device=like.device))
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(2).to(like.dtype)


def targets_of(config: Any, features_ine: Tensor, pixel_values: Tensor) -> Tensor:
    """What is predicted of each patch, float32 [I, N, C] without gradient; zero mean and unit variance in a patch."""
    values = features_ine
    if config.reconstruction == "pixels":
        values = pixel_values
        if values.ndim == 4:
            patch = config.vision_config.patch_size
            values = F.unfold(values, patch, stride=patch).transpose(1, 2)
        values = F.pad(values, (0, 0, 0, features_ine.shape[1] - values.shape[1]))
    return F.layer_norm(values.detach().float(), values.shape[-1:])


def squared_error(predicted_inc: Tensor, target_inc: Tensor, valid_in: Tensor) -> Tensor:
    """Mean over images of the mean squared error over each image's valid patches; float32 scalar."""
    error_in = (predicted_inc.float() - target_inc).square().mean(-1) * valid_in
    return (error_in.sum(1) / valid_in.sum(1).clamp(min=1)).mean()


def encode_and_reconstruct(
    model: Any, pixel_values: Tensor, pixel_attention_mask: Tensor | None, spatial_shapes: Tensor | None
) -> tuple[ImageOutput, Tensor]:
    """Images as `EdgeVlmModel.get_image_features` gives them, and the error of reconstructing them.

    The error's gradient reaches the head, the compressor and the projector, never the encoder.

    Raises:
        ModelInputError: As `edgevlm.model.vision.patch_features`.
    """
    features, valid = model.patch_features(pixel_values, pixel_attention_mask, spatial_shapes)
    images = model.image_output(features, valid, spatial_shapes=spatial_shapes)
    tokens = images.pooler_output
    if features.requires_grad:
        tokens = model.image_output(features.detach(), valid, spatial_shapes=spatial_shapes).pooler_output
    target = targets_of(model.config, features, pixel_values)
    return images, squared_error(model.reconstruction(tokens, spatial_shapes), target, valid)


def reconstruction_weight(config: Any, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Any:
    """Weight of a batch's error in its loss; of an accumulated batch's share, the share of the answer tokens."""
    weight = config.reconstruction_loss_weight
    if num_items_in_batch is None:
        return weight
    return weight * (labels[:, 1:] != -100).sum() / num_items_in_batch


def auxiliary_output(head: Reconstruction, auxiliary_loss: Tensor | None) -> EdgeVlmOutput:
    """Output without the language model; the loss of a batch without images is 0, and can be gone back through."""
    loss = head.linear_2.bias.sum() * 0.0 if auxiliary_loss is None else auxiliary_loss
    return EdgeVlmOutput(loss=loss, auxiliary_loss=auxiliary_loss)
