"""Runs prompts through a model: one as it is, or several in one padded batch.

Shapes: B rows, T tokens of the longest prompt, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgevlm.errors import RequestError

Inputs = dict[str, Any]


@torch.inference_mode()
def prefill_row(model: Any, inputs: Inputs) -> tuple[Tensor, Any]:
    """Logits of the next token [V] and the cache of one prompt.

    Args:
        model: Image-text-to-text model.
        inputs: What the processor made for one row, input_ids [1, T]; for a token reducer in the model maybe
            `max_visual_tokens`.

    Raises:
        RequestError: The reducer cannot hold `max_visual_tokens`.
    """
    try:
        output = model(**inputs, use_cache=True, **_last_logits_only(model))
    except ValueError as error:
        # The reducer's own type is not known here; its entry point promises a ValueError.
        if "max_visual_tokens" not in inputs:
            raise
        raise RequestError(f"max_visual_tokens={inputs['max_visual_tokens']}: {error}") from error
    return output.logits[0, -1], output.past_key_values


@torch.inference_mode()
def prefill_rows(model: Any, rows: Sequence[Inputs]) -> tuple[Tensor, Any]:
    """Logits of the next tokens [B, V] and the cache of several prompts, for models that `may_prefill_together`.

    Prompts begin together and are padded after their ends: no token sees a later one, so what stands
    there changes nothing, and the model needs no mask. Images of all rows make one batch.

    Args:
        model: Image-text-to-text model.
        rows: Inputs of each prompt; images of equal shape.
    """
    lengths = torch.tensor([row["input_ids"].shape[1] for row in rows])
    first = rows[0]["input_ids"]
    # Any token but the image's will do.
    filler = 0 if image_token_id(model.config) != 0 else 1
    input_ids = first.new_full((len(rows), int(lengths.max())), filler)
    for index, row in enumerate(rows):
        input_ids[index, : lengths[index]] = row["input_ids"][0]
    names = {name for row in rows for name in row} - {"input_ids"}
    images = {name: torch.cat([row[name] for row in rows if name in row]) for name in names}
    output = model.model(input_ids=input_ids, **images, use_cache=True)
    last = output.last_hidden_state[torch.arange(len(rows)), lengths - 1]
    return model.get_output_embeddings()(last), output.past_key_values


def image_token_id(config: Any) -> int:
    """The placeholder's id; -1 where a config knows none."""
    found = getattr(config, "image_token_id", None)
    return int(found if found is not None else getattr(config, "image_token_index", -1))


def _last_logits_only(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
