"""The edge model without its head (AuroraEdge-V-2B, Section 3.1).

Encode and project an image, compress its visual tokens, fuse the uncompressed ones into the text
tokens, and give both to the language model.

Positions: the model takes contiguous ones (as `generate` and collators make them; packed rows
restart after the shared prefix) and, with `position_mode="uncompressed"`, maps them itself.

An image may have fewer visual tokens than the model gives it by itself: whoever makes them fewer (a
token reducer in the compressor's place) hands over `mm_encoder_outputs`, made by `image_output` from
`patch_features`, and as many placeholders as there are tokens. The fusion sees all of them all the same.

Shapes: B rows, T tokens, I images, N and M visual tokens of an image before and after the
compressor, S text tokens, E features of the encoder, D of the language model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling

from edgevlm.errors import ModelInputError
from edgevlm.model.compressors import compressor_of
from edgevlm.model.configuration import EdgeVlmConfig
from edgevlm.model.connectors import Projector
from edgevlm.model.fusion import Fusion
from edgevlm.model.fusion_cache import FusionState
from edgevlm.model.fusion_static import fusion_state_for
from edgevlm.model.image_output import ImageOutput, image_output_of
from edgevlm.model.infusing import fuse_next, fuse_prompt
from edgevlm.model.layout import Layout, contiguous_positions
from edgevlm.model.pretrained import EdgeVlmPreTrainedModel
from edgevlm.model.reconstruction import Reconstruction
from edgevlm.model.text_masks import added_mask, plain_mask
from edgevlm.model.vision import patch_features


class EdgeVlmModel(EdgeVlmPreTrainedModel):
    """Everything but the language model's head."""

    def __init__(self, config: EdgeVlmConfig) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        text: Any = config.text_config
        self.vision_tower = AutoModel.from_config(vision)
        self.multi_modal_projector = Projector(
            vision.hidden_size, text.hidden_size, hidden_act=config.projector_hidden_act, bias=config.projector_bias
        )
        self.compressor = compressor_of(config)
        self.reconstruction = None if config.reconstruction == "none" else Reconstruction(config)
        self.language_model = AutoModel.from_config(text)
        self.fusion = None
        if config.fusion != "none":
            number = config.num_fusion_layers if config.fusion in ("decoder", "combined") else 0
            layers: Any = self.language_model.layers
            own_layers = [type(layer)(text, layer_idx=index) for index, layer in enumerate(layers[:number])]
            self.fusion = Fusion(config, own_layers)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Word embeddings."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def copy_fusion_decoder(self) -> None:
        """Starts the fusion's decoder layers as copies of the language model's first ones (Section 4.1)."""
        blocks: Any = [] if self.fusion is None else self.fusion.decoder
        for block, layer in zip(blocks, self.language_model.layers, strict=False):
            block.layer.load_state_dict(layer.state_dict())

    def patch_features(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, spatial_shapes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The encoder's features [I, N, E] and their validity, bool [I, N].

        Raises:
            ModelInputError: As `edgevlm.model.vision.patch_features`.
        """
        return patch_features(self.vision_tower, self.config, pixel_values, pixel_attention_mask, spatial_shapes)

    def image_output(
        self,
        features: Tensor,
        valid: Tensor,
        tokens: Sequence[Tensor] | None = None,
        places: Sequence[Tensor] | None = None,
        spatial_shapes: Tensor | None = None,
    ) -> ImageOutput:
        """Images for `mm_encoder_outputs`.

        Args:
            features: [I, N, E], as `patch_features` gives them.
            valid: bool [I, N], False at padding.
            tokens: What the language model sees of each image instead of what the compressor gives: [M_i, D],
                projected already.
            places: Which of the N each of those tokens stands for, int64 [M_i] of each image; needed with
                `position_mode="uncompressed"`.
            spatial_shapes: NaFlex only, [I, 2]; for the compressor.
        """
        visual = None
        if self.fusion is not None or tokens is None:
            visual = self.multi_modal_projector(features) * valid[..., None]
        if tokens is None:
            seen: Any = visual if self.compressor is None else self.compressor(visual, spatial_shapes)
            if self._moves_positions and self.compressor is not None:
                places = self.compressor.places(spatial_shapes, features.shape[0])
        else:
            seen = list(tokens)
        return ImageOutput(last_hidden_state=visual, pooler_output=seen, valid=valid, places=places)

    def get_image_features(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        **kwargs: Any,
    ) -> ImageOutput:
        """Images as the language model and the fusion see them; compressed tokens [I, M, D] in `pooler_output`.

        Raises:
            ModelInputError: As `edgevlm.model.vision.patch_features`.
        """
        features, valid = self.patch_features(pixel_values, pixel_attention_mask, spatial_shapes)
        return self.image_output(features, valid, spatial_shapes=spatial_shapes)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the language model.

        Args:
            input_ids: [B, T]; a prompt holds `num_compressed_tokens` placeholders for each image, or with
                `mm_encoder_outputs` as many as that has tokens of the image.
            pixel_values: [I, 3, H, W], or NaFlex patches; images in the order of their placeholders.
            pixel_attention_mask: NaFlex only, [I, n].
            spatial_shapes: NaFlex only, [I, 2].
            attention_mask: [B, T with the past], 0 at padding on either side; or [B, 1, T, keys], bool and True
                where a key is seen, or what is added to scores, as of packed rows or for a static cache.
            position_ids: [B, T], contiguous, restarting after the prefix in packed rows.
            past_key_values: Cache of the same rows, dynamic or static; carries the fusion's state too.
            use_cache: Defaults to True outside training.
            mm_encoder_outputs: Images already encoded, an `ImageOutput` under "image"; instead of pixel_values.
            **kwargs: For the language model.

        Raises:
            ModelInputError: Images and placeholders do not match, or images come after the prompt.
        """
        use_cache = not self.training if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.get_text_config())
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        state = FusionState.find(past_key_values)
        # A static cache's length is a tensor; asking for its value would break a compiled step in two.
        is_prompt = state is None and (isinstance(num_past, Tensor) or num_past == 0)
        if position_ids is None:
            position_ids = contiguous_positions(attention_mask, input_ids.shape[1], num_past, input_ids.device)
        position_ids = position_ids.expand(input_ids.shape[0], -1)
        embeds = self.get_input_embeddings()(input_ids)
        encoded = (mm_encoder_outputs or {}).get("image")
        if is_prompt:
            is_visual = input_ids == self.config.image_token_id
            images = None
            if pixel_values is not None or encoded is not None or bool(is_visual.any()):
                images = self._read_images(encoded, pixel_values, pixel_attention_mask, spatial_shapes)
            seen = plain_mask(attention_mask)
            embeds, position_ids, state = self._prompt(embeds, is_visual, images, seen, position_ids, past_key_values)
            if images is not None and self._moves_positions and attention_mask is None and past_key_values is None:
                # Without a mask transformers takes a jump in positions for the border of a packed row.
                attention_mask = torch.ones_like(input_ids)
        elif pixel_values is not None or encoded is not None:
            raise ModelInputError("pixel_values: expected images in the prompt, got images after the prompt")
        elif state is not None:
            # A placeholder is a token like any other here: a model may well generate one.
            if self.fusion is not None and state.has_images:
                seen, rotary_emb = plain_mask(attention_mask), self.language_model.rotary_emb
                embeds = fuse_next(self.fusion, rotary_emb, embeds, state, seen, position_ids, self._num_visual)
            position_ids = position_ids + state.num_skipped_b[:, None] * self._moves_positions
        output: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=embeds,
            attention_mask=self._backend_mask(attention_mask, embeds.dtype),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        if is_prompt and past_key_values is not None and state is not None:
            state.put_into(past_key_values)
        return output

    def _backend_mask(self, attention_mask: Any, dtype: torch.dtype) -> Any:
        """The eager backend adds a mask of queries and keys to scores, whatever its type."""
        if getattr(attention_mask, "ndim", 0) != 4 or self.language_model.config._attn_implementation != "eager":
            return attention_mask
        return added_mask(attention_mask, dtype)

    @property
    def _num_visual(self) -> int:
        return int(self.config.num_visual_tokens or 0)

    @property
    def _moves_positions(self) -> bool:
        return self.config.position_mode == "uncompressed"

    def _read_images(
        self,
        encoded: BaseModelOutputWithPooling | None,
        pixel_values: Tensor | None,
        mask: Tensor | None,
        shapes: Tensor | None,
    ) -> ImageOutput:
        if (pixel_values is None) == (encoded is None):
            got = "placeholders without images" if pixel_values is None else "mm_encoder_outputs beside them"
            raise ModelInputError(f"pixel_values: expected images and their placeholders in the prompt, got {got}")
        if pixel_values is not None:
            return self.get_image_features(pixel_values, mask, shapes)
        assert encoded is not None
        return image_output_of(encoded, num_visual=self._num_visual, needs_uncompressed=self.fusion is not None)

    def _prompt(
        self,
        embeds: Tensor,
        is_visual: Tensor,
        images: ImageOutput | None,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor, FusionState]:
        """A prompt with its images in place: embeddings, the language model's positions, and the fusion's state."""
        layout = Layout.of(is_visual, [] if images is None else images.num_tokens)
        state = fusion_state_for(cache, layout, self._num_visual)
        if images is None:
            return embeds, position_ids, state
        if self.fusion is not None:
            rotary_emb = self.language_model.rotary_emb
            embeds = fuse_prompt(self.fusion, rotary_emb, embeds, images, layout, state, attention_mask, position_ids)
        # One empty part more, so that there is something to join where there are no images.
        tokens = torch.cat([*images.tokens, embeds.new_empty(0, embeds.shape[-1])]).to(embeds.device, embeds.dtype)
        embeds = embeds.masked_scatter(is_visual[..., None], tokens)
        if self._moves_positions:
            places = images.places_of(self._num_visual, is_visual.device)
            position_ids = layout.uncompressed_positions(position_ids, places, self._num_visual)
        return embeds, position_ids, state


AutoModel.register(EdgeVlmConfig, EdgeVlmModel)
