"""A model of any image-text-to-text directory with its processor: checks requests, counts their tokens."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from edgevlm.errors import ModelDirectoryError
from edgevlm.model.loading import load_part, load_strictly
from edgevlm.serving.preparing import Prepared, prepare
from edgevlm.serving.requests import GenerationRequest, Images, as_images
from vlmpress.artifact import compression_attachment, import_model_code, quantized_loader, reducer_attachment


class LoadedModel:
    """A model with its processor.

    Preparing requests is safe in several threads; everything else belongs to one at a time.

    Args:
        model: Image-text-to-text model.
        processor: Its processor.
        reducer: What a token reducer's `attach` gave, when one is in the model.

    Attributes:
        model: In evaluation mode.
        processor: See above.
        max_positions: Longest sequence the language model has positions for, where its config says.
        eos_token_ids: Tokens that end an answer.
    """

    def __init__(self, model: Any, processor: Any, *, reducer: Any = None) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_positions = _max_positions(model)
        self.eos_token_ids = _eos_token_ids(model, processor.tokenizer)
        self._reducer = reducer

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
        if load_quantized is None:
            model = load_strictly(AutoModelForImageTextToText, directory, dtype=dtype)
        else:
            model = _called(load_quantized, directory, "an image-text-to-text model")
        processor = load_part(AutoProcessor, directory, "a processor")
        reducer = None
        if attach is not None:
            reducer = _called(partial(attach, model), directory, "a reduction policy that fits the model")
        if compress is not None:
            # Its hooks keep what it returns alive.
            _called(partial(compress, model), directory, "a compression that fits the model")
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

    def prepare(self, images: Images, prompt: str) -> dict[str, Any]:
        """Model inputs of a question; errors as in `prepare_request`."""
        return self.prepare_request(GenerationRequest(prompt=prompt, max_new_tokens=1, images=as_images(images))).inputs

    def prepare_request(self, request: GenerationRequest) -> Prepared:
        """A request as a `Batcher` takes it.

        Raises:
            ImageError: An image is refused.
            RequestError: The prompt or a limit is refused; PromptTooLongError when it leaves no room for an answer.
        """
        return prepare(
            request,
            self.model,
            self.processor,
            max_positions=self.max_positions,
            has_reducer=self._reducer is not None,
        )

    def count_visual(self, prepared: Prepared) -> int:
        """Visual tokens the language model saw of the prompt that it has just taken in."""
        if prepared.num_placeholders and self._reducer is not None:
            return int(sum(self._reducer.last_num_visual_tokens))
        return prepared.num_placeholders


def _called(load: Callable[[], Any], directory: Path, what: str) -> Any:
    """What another distribution's code makes of a directory; its own error types are not known here."""
    try:
        return load()
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelDirectoryError(f"{directory}: expected {what}, got: {reason}") from error


def _max_positions(model: Any) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def _eos_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is None:
        configured = model.config.get_text_config().eos_token_id
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return frozenset((*own, *listed))
