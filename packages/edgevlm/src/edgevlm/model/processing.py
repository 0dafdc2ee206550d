"""Processor of the edge model: an image becomes its pixels and a fixed number of placeholders."""

from typing import Any

from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from edgevlm.model.configuration import EdgeVlmConfig


class EdgeVlmProcessor(ProcessorMixin):
    """Image processor and tokenizer.

    Args:
        image_processor: Of the vision encoder; a SigLIP2 one makes NaFlex patches.
        tokenizer: Of the language model; knows `image_token` as one token.
        num_compressed_tokens: Placeholders of an image, as in the model's config.
        image_token: Text that stands for an image in a prompt.
        chat_template: Jinja template of a conversation.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_compressed_tokens: int = 64,
        image_token: str = "<image>",
        chat_template: str | None = None,
    ) -> None:
        self.num_compressed_tokens = num_compressed_tokens
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Placeholders of one image."""
        return self.image_token * self.num_compressed_tokens


AutoProcessor.register(EdgeVlmConfig, EdgeVlmProcessor)
