"""The edge model as an ordinary Hugging Face image-text-to-text model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationMixin
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.generation.logits_process import LogitsProcessorList, SuppressTokensLogitsProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from edgevlm.model.backbone import EdgeVlmModel
from edgevlm.model.configuration import EdgeVlmConfig
from edgevlm.model.image_output import image_output_of
from edgevlm.model.layout import Layout
from edgevlm.model.pretrained import EdgeVlmPreTrainedModel
from edgevlm.model.reconstruction import (
    EdgeVlmOutput,
    auxiliary_output,
    encode_and_reconstruct,
    reconstruction_weight,
)


class EdgeVlmForConditionalGeneration(EdgeVlmPreTrainedModel, GenerationMixin):
    """The edge model with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: EdgeVlmConfig) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = EdgeVlmModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

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
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> EdgeVlmOutput:
        """Logits [B, T or logits_to_keep, vocabulary] and, with labels, the loss in nats.

        Args:
            input_ids: As in `EdgeVlmModel.forward`, like all not named here.
            pixel_values: See there.
            pixel_attention_mask: See there.
            spatial_shapes: See there.
            attention_mask: See there.
            position_ids: See there.
            past_key_values: See there.
            use_cache: See there.
            labels: [B, T], -100 where there is no target; a token's label is predicted one place before it.
            logits_to_keep: Only this many last positions, or these indices; 0 for all.
            num_items_in_batch: Targets over an accumulated batch, to divide the summed loss by.
            mm_encoder_outputs: As in `EdgeVlmModel.forward`.
            **kwargs: For the language model.
        """
        auxiliary_loss = None
        if labels is not None and self.model.reconstruction is not None:
            if pixel_values is not None:
                images, error = encode_and_reconstruct(self.model, pixel_values, pixel_attention_mask, spatial_shapes)
                mm_encoder_outputs = {"image": images}
                pixel_values = pixel_attention_mask = spatial_shapes = None
                auxiliary_loss = error * reconstruction_weight(self.config, labels, num_items_in_batch)
            if self.config.text_loss_weight == 0:
                return auxiliary_output(self.model.reconstruction, auxiliary_loss)
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = output.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=num_items_in_batch
            )
            if self.model.reconstruction is not None:
                loss = self.config.text_loss_weight * loss + (0 if auxiliary_loss is None else auxiliary_loss)
        return EdgeVlmOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            auxiliary_loss=auxiliary_loss,
        )

    def _expand_multimodal_outputs(
        self,
        input_ids: Tensor,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        """Images of rows that are repeated for beams; transformers would leave those for the fusion as they are."""
        encoded = mm_encoder_output.get("image")
        if encoded is None:
            return mm_encoder_output
        num_visual = int(self.config.num_visual_tokens or 0)
        images = image_output_of(encoded, num_visual=num_visual, needs_uncompressed=self.model.fusion is not None)
        layout = Layout.of(input_ids == self.config.image_token_id, images.num_tokens)
        of_rows = [image[has] for image, has in zip(layout.image_of_bk, layout.has_image_bk, strict=True)]
        repeated = [row for row in of_rows for _ in range(expand_size)]
        return mm_encoder_output | {"image": images.select(torch.cat(repeated).tolist())}

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> CandidateGenerator:
        """Assisted decoding reads its first candidates with the prompt, where a placeholder stands for an image."""
        no_placeholder = SuppressTokensLogitsProcessor([self.config.image_token_id], device=str(self.device))
        kwargs["logits_processor"] = LogitsProcessorList([*kwargs["logits_processor"], no_placeholder])
        return super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Images are read once, with the prompt."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if inputs.get("pixel_values") is None:
            inputs.pop("spatial_shapes", None)
        return inputs


AutoModelForImageTextToText.register(EdgeVlmConfig, EdgeVlmForConditionalGeneration)
