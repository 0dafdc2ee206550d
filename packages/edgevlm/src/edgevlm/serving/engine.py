"""Serves any image-text-to-text model directory: checks a request, streams its answer, counts its tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from edgevlm.errors import ModelDirectoryError, PromptTooLongError, RequestError
from edgevlm.serving.decoding import TextStream, greedy_token_ids
from edgevlm.serving.events import Finish, FinishReason, GeneratedToken, GenerationEvent
from edgevlm.serving.images import decode_image, upright_rgb
from edgevlm.serving.prompting import encode
from vlmpress.artifact import compression_attachment, import_model_code, quantized_loader, reducer_attachment


class Engine:
    """A model with its processor, answering one request at a time; not for use by several threads at once.

    Args:
        model: Image-text-to-text model.
        processor: Its processor.
        reducer: What a token reducer's `attach` gave, when one is in the model.
    """

    def __init__(self, model: Any, processor: Any, *, reducer: Any = None) -> None:
        self.model = model.eval()
        self.processor = processor
        self._reducer = reducer
        self._num_visual_tokens = 0
        self._eos_token_ids = _eos_token_ids(model, processor.tokenizer)

    @classmethod
    def load(cls, directory: Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Loads a `save_pretrained` directory, a quantized pack, or a model with a token reducer's policy.

        Args:
            directory: Model and processor; code its config names is found through entry points.
            dtype: Of an unquantized model's weights; a pack's loader chooses its own.

        Raises:
            ArtifactError: No readable config.json, or no installed distribution offers what it names.
            ModelDirectoryError: Weights, processor, policy or kept compression cannot be used.
        """
        directory = Path(directory)
        import_model_code(directory)
        load_quantized = quantized_loader(directory)
        attach, compress = reducer_attachment(directory), compression_attachment(directory)
        try:
            if load_quantized is not None:
                model = load_quantized()
            else:
                model = AutoModelForImageTextToText.from_pretrained(directory, dtype=dtype, local_files_only=True)
            processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelDirectoryError(f"{directory}: expected an image-text-to-text model, got: {error}") from error
        try:
            reducer = None if attach is None else attach(model)
        except (ValueError, TypeError) as error:
            raise ModelDirectoryError(
                f"{directory}: expected a reduction policy that fits the model, got: {error}"
            ) from error
        try:
            if compress is not None:
                compress(model)  # Its hooks keep what it returns alive.
        except (ValueError, TypeError) as error:
            raise ModelDirectoryError(
                f"{directory}: expected a compression that fits the model, got: {error}"
            ) from error
        if not hasattr(processor, "tokenizer"):
            raise ModelDirectoryError(
                f"{directory}: expected a processor with tokenizer, got {type(processor).__name__}"
            )
        return cls(model, processor, reducer=reducer)

    @property
    def num_params(self) -> int:
        """Parameters of the loaded model, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def model_type(self) -> str:
        """The Hugging Face model type, for example "llava"."""
        return str(self.model.config.model_type)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the language model has positions for, where its config says."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens the language model saw in the last request."""
        return self._num_visual_tokens

    def prepare(self, image: bytes | Image.Image | None, prompt: str) -> dict[str, Any]:
        """Model inputs of a request.

        Raises:
            ImageError: The image bytes are refused.
            RequestError: The prompt is refused; PromptTooLongError when it leaves no room for an answer.
        """
        if isinstance(image, bytes):
            image = decode_image(image)
        elif image is not None:
            image = upright_rgb(image)
        inputs = encode(self.processor, image, prompt)
        num_tokens = inputs["input_ids"].shape[1]
        if self.max_positions is not None and num_tokens >= self.max_positions:
            raise PromptTooLongError(f"prompt: expected under {self.max_positions} tokens, got {num_tokens}")
        return {name: _placed(value, self.model) for name, value in inputs.items()}

    def generate(
        self,
        image: bytes | Image.Image | None,
        prompt: str,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
    ) -> Iterator[GenerationEvent]:
        """Streams the greedy answer: a GeneratedToken for each token, the end token included, then one Finish.

        A request is checked here, before the first event is asked for; only a token reducer finds out
        with the first event that it cannot hold a limit. Generation also ends, with reason LENGTH,
        where the model's positions end.

        Args:
            image: PNG or JPEG bytes, or a decoded image; None for a text-only question.
            prompt: The question, without chat markup.
            max_new_tokens: Longest answer, at least 1.
            max_visual_tokens: Limit of visual tokens the language model sees, at least 1; None for none.
                An attached token reducer makes the image fit. Without one, a limit below what the image
                needs is refused.

        Raises:
            ImageError: The image bytes are refused.
            RequestError: The prompt or a limit is refused.
        """
        for name, limit in (("max_new_tokens", max_new_tokens), ("max_visual_tokens", max_visual_tokens)):
            if limit is not None and limit < 1:
                raise RequestError(f"{name}: expected at least 1, got {limit}")
        inputs = self.prepare(image, prompt)
        if max_visual_tokens is not None and image is not None:
            inputs |= self._limited(inputs, max_visual_tokens)
        if self.max_positions is not None:
            max_new_tokens = min(max_new_tokens, self.max_positions - inputs["input_ids"].shape[1])
        return self._events(inputs, max_new_tokens)

    def _limited(self, inputs: dict[str, Any], max_visual_tokens: int) -> dict[str, Any]:
        """What tells the attached reducer the limit; nothing where no reducer is needed to hold it."""
        if self._reducer is not None:
            return {"max_visual_tokens": max_visual_tokens}
        num_needed = self._num_placeholders(inputs)
        if num_needed > max_visual_tokens:
            raise RequestError(
                f"max_visual_tokens: expected at least {num_needed}, which the image needs on a model "
                f"without a token reducer, got {max_visual_tokens}"
            )
        return {}

    def _events(self, inputs: dict[str, Any], max_new_tokens: int) -> Iterator[GenerationEvent]:
        stream = TextStream(self.processor.tokenizer)
        num_generated, stopped, num_prompt = 0, False, 0
        token_ids = greedy_token_ids(
            self.model, inputs, eos_token_ids=self._eos_token_ids, max_new_tokens=max_new_tokens
        )
        for token_id in token_ids:
            if num_generated == 0:
                num_prompt = self._count_prompt(inputs)
            num_generated += 1
            stopped = token_id in self._eos_token_ids
            last = stopped or num_generated == max_new_tokens
            yield GeneratedToken(id=token_id, text=stream.push(token_id, last=last))
        yield Finish(
            reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            num_prompt_tokens=num_prompt,
            num_visual_tokens=self._num_visual_tokens,
            num_generated_tokens=num_generated,
            text=stream.text,
        )

    def _num_placeholders(self, inputs: dict[str, Any]) -> int:
        return int((inputs["input_ids"] == _image_token_id(self.model.config)).sum())

    def _count_prompt(self, inputs: dict[str, Any]) -> int:
        """Tokens the language model saw of the prompt; remembers how many of them were visual."""
        num_placeholders = self._num_placeholders(inputs)
        self._num_visual_tokens = num_placeholders
        if num_placeholders and self._reducer is not None:
            self._num_visual_tokens = sum(self._reducer.last_num_visual_tokens)
        return int(inputs["input_ids"].shape[1]) - num_placeholders + self._num_visual_tokens


def _placed(value: torch.Tensor, model: Any) -> torch.Tensor:
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def _image_token_id(config: Any) -> int:
    found = getattr(config, "image_token_id", None)
    return int(found if found is not None else getattr(config, "image_token_index", -1))


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is None:
        configured = model.config.get_text_config().eos_token_id
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return frozenset((*own, *listed))
