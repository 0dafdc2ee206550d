"""Processor of the edge model: an image becomes its pixels and a fixed number of placeholders."""

from typing import Any

from transformers import AutoProcessor
from transformers.processing_utils import ProcessorMixin

from edgevlm.errors import ModelInputError
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

    def validate_inputs(  # type: ignore[override]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> None:
        """Checks that texts have a placeholder for each image.

        Args:
            images: Images in the order of their placeholders, or a list of them for each text that has any.
            text: Texts.
            **kwargs: As in `ProcessorMixin.validate_inputs`.

        Raises:
            ModelInputError: They do not, text by text where images come so, or there is nothing to process.
        """
        if text is not None and images is not None and _by_text(images):
            # A text without images may have a list of none, or no list.
            found = [count for count in (str(sample).count(self.image_token) for sample in text) if count]
            wanted = [len(own) for own in images if own]
            if found != wanted:
                raise ModelInputError(
                    f"text: expected {wanted} of {self.image_token!r}, one for each image of a text, got {found}"
                )
        try:
            super().validate_inputs(images=images, text=text, **kwargs)
        except ValueError as error:
            raise ModelInputError(str(error)) from error

    def _check_special_mm_tokens(self, *args: Any, **kwargs: Any) -> None:
        """Truncation may have cut off placeholders."""
        try:
            super()._check_special_mm_tokens(*args, **kwargs)
        except ValueError as error:
            raise ModelInputError(str(error)) from error


def _by_text(images: Any) -> bool:
    return isinstance(images, list | tuple) and bool(images) and all(isinstance(own, list | tuple) for own in images)


AutoProcessor.register(EdgeVlmConfig, EdgeVlmProcessor)
