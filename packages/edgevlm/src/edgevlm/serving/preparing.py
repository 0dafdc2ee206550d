"""Checks a request and makes it ready for the model; safe in several threads at a time."""

from dataclasses import dataclass
from typing import Any

import torch

from edgevlm.errors import PromptTooLongError, RequestError
from edgevlm.serving.images import decode_images
from edgevlm.serving.prefilling import Inputs, image_token_id
from edgevlm.serving.prompting import encode
from edgevlm.serving.requests import GenerationRequest, Sampling


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """A request that a model can take.

    Attributes:
        inputs: Of the model, one row.
        num_placeholders: Image placeholders of the prompt.
        max_new_tokens: Longest answer that the request and the model's positions allow.
        deadline_s: `time.monotonic()` at which the answer ends.
        sampling: How tokens are chosen.
    """

    inputs: Inputs
    num_placeholders: int
    max_new_tokens: int
    deadline_s: float | None
    sampling: Sampling

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, before any reducer."""
        return int(self.inputs["input_ids"].shape[1])


def prepare(
    request: GenerationRequest, model: Any, processor: Any, *, max_positions: int | None, has_reducer: bool
) -> Prepared:
    """A request as the model takes it.

    Raises:
        ImageError: An image is refused.
        RequestError: The prompt or a limit is refused; PromptTooLongError when there is no room for an answer.
    """
    images = decode_images(request.images)
    inputs: Inputs = encode(
        processor, images, request.prompt, history=request.history, images_of_turns=request.images_of_turns
    )
    num_tokens = inputs["input_ids"].shape[1]
    if max_positions is not None and num_tokens >= max_positions:
        raise PromptTooLongError(f"prompt: expected under {max_positions} tokens, got {num_tokens}")
    num_placeholders = int((inputs["input_ids"] == image_token_id(model.config)).sum())
    inputs = {name: _placed(value, model) for name, value in inputs.items()}
    limit = request.max_visual_tokens
    if limit is not None and images:
        if has_reducer:
            inputs["max_visual_tokens"] = limit
        elif num_placeholders > limit:
            raise RequestError(
                f"max_visual_tokens: expected at least {num_placeholders}, which the image needs on a model "
                f"without a token reducer, got {limit}"
            )
    num_left = request.max_new_tokens if max_positions is None else max_positions - num_tokens
    return Prepared(
        inputs=inputs,
        num_placeholders=num_placeholders,
        max_new_tokens=min(request.max_new_tokens, num_left),
        deadline_s=request.deadline_s,
        sampling=request.sampling,
    )


def _placed(value: Any, model: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
