"""Greedy decoding at batch 1 with a KV cache, and the text it adds token by token.

Hugging Face's `generate` prepares masks, logits processors and stopping criteria for every
token; for a small model that costs more than the model itself.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from edgevlm.errors import RequestError


def greedy_token_ids(
    model: Any, inputs: dict[str, Any], *, eos_token_ids: frozenset[int], max_new_tokens: int
) -> Iterator[int]:
    """Yields the most likely next token until an end token, which is yielded too, or `max_new_tokens`.

    Args:
        model: Image-text-to-text model; its own KV cache holds the state.
        inputs: What the processor made for one row, input_ids [1, T]; for a token reducer in the model maybe
            `max_visual_tokens`.
        eos_token_ids: Tokens that end the answer.
        max_new_tokens: At least 1.

    Raises:
        RequestError: The reducer cannot hold `max_visual_tokens`.
    """
    token_id, cache = prefill(model, inputs)
    yield token_id
    for _ in range(max_new_tokens - 1):
        if token_id in eos_token_ids:
            return
        token_id, cache = _step(model, token_id, cache)
        yield token_id


# Inference mode is entered for each call, never across a yield: it is state of the thread, and
# between two tokens the thread belongs to the caller.
@torch.inference_mode()
def prefill(model: Any, inputs: dict[str, Any]) -> tuple[int, Any]:
    """First token and KV cache of a prompt; errors as in `greedy_token_ids`."""
    try:
        output = model(**inputs, use_cache=True, **_last_logits_only(model))
    except ValueError as error:
        # The reducer's own type is not known here; its entry point promises a ValueError.
        if "max_visual_tokens" not in inputs:
            raise
        raise RequestError(f"max_visual_tokens={inputs['max_visual_tokens']}: {error}") from error
    return int(output.logits[0, -1].argmax()), output.past_key_values


@torch.inference_mode()
def _step(model: Any, token_id: int, cache: Any) -> tuple[int, Any]:
    input_ids = torch.tensor([[token_id]], device=model.device)
    output = model(input_ids=input_ids, past_key_values=cache, use_cache=True)
    return int(output.logits[0, -1].argmax()), output.past_key_values


def _last_logits_only(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


class TextStream:
    """Text added by each token; the pieces joined equal the decoded whole.

    A token can end inside a character; its bytes then show as U+FFFD and are held back until the
    next token completes them or the answer ends.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self.text = ""

    def push(self, token_id: int, *, last: bool) -> str:
        """Takes one token and gives the text that is certain now."""
        self._token_ids.append(token_id)
        whole = str(
            self._tokenizer.decode(self._token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        if not whole.startswith(self.text) or (whole.endswith("\ufffd") and not last):
            return ""
        added, self.text = whole[len(self.text) :], whole
        return added
