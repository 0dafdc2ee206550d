"""One forward of a model: one more token of a row, or of every row of a batch.

Hugging Face's `generate` prepares masks, logits processors and stopping criteria for every
token; for a small model that costs more than the model itself.

Shapes: n rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgevlm.serving.ragged_cache import RaggedCache


@torch.inference_mode()
def decode_row(model: Any, token_id: int, cache: Any) -> Tensor:
    """Logits [V] of what follows a token; the cache of its row takes it in."""
    input_ids = torch.tensor([[token_id]], device=model.device)
    logits: Tensor = model(input_ids=input_ids, past_key_values=cache, use_cache=True).logits[0, -1]
    return logits


@torch.inference_mode()
def decode_rows(model: Any, token_ids: Sequence[int], cache: RaggedCache) -> Tensor:
    """Logits [n, V] of what follows one token of each row, in the rows' order."""
    positions, mask = cache.begin_step(model.device)
    if mask is not None and model.config.get_text_config()._attn_implementation == "sdpa":
        # What the model would make of it, at some cost.
        mask = mask[:, None, None]
    input_ids = torch.tensor(token_ids, device=model.device)[:, None]
    output = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    logits: Tensor = output.logits[:, -1]
    return logits
