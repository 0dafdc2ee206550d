"""Hidden states of the decoder's layers where response tokens are predicted.

N response tokens, B rows, T positions, h hidden size.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verbdistill.errors import BatchError
from verbdistill.models.parts import base_model, decoder_layers

IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseStates:
    """What one forward leaves of a batch's response tokens.

    Attributes:
        layers: Output of each asked-for decoder layer, [N, h] each, before the final norm: also for the
            last layer, whose entry in transformers' hidden_states is after it. So a verbalizer applies
            the final norm itself, the same way for every layer.
        last: What the language head reads, [N, h], after the final norm.
        labels: Token ids to predict, [N].
    """

    layers: tuple[Tensor, ...]
    last: Tensor
    labels: Tensor


def response_positions(labels: Tensor) -> Tensor:
    """True where the next position's label is a response token; labels [B, T] -> bool [B, T].

    Raises:
        BatchError: There is no response token.
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED
    if not bool(positions.any()):
        raise BatchError("labels: expected at least one response token after the first position, got none")
    return positions


def response_states(model: nn.Module, batch: Mapping[str, Tensor], layers: Sequence[int]) -> ResponseStates:
    """Runs a Llava-like model without its language head; keeps response tokens of some layers only.

    Hooks pick the tokens as each layer ends, so other positions' states are not kept for the caller.
    A graph is made or not as the caller's grad mode says.

    Args:
        model: The model.
        batch: A universal training batch; every key but `labels` goes to the model.
        layers: 1-based decoder layers, ascending.

    Raises:
        BatchError: No labels, or no response token among them.
    """
    if "labels" not in batch:
        raise BatchError(f"batch: expected labels, got {', '.join(sorted(batch))}")
    labels = batch["labels"]
    positions = response_positions(labels)
    found: dict[int, Tensor] = {}
    blocks = decoder_layers(model)
    with ExitStack() as hooks:
        for layer in layers:

            def keep(_module: nn.Module, _inputs: Any, output: Any, layer: int = layer) -> None:
                found[layer] = (output[0] if isinstance(output, tuple) else output)[positions]

            hooks.callback(blocks[layer - 1].register_forward_hook(keep).remove)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        last = base_model(model)(**inputs, use_cache=False).last_hidden_state[positions]
    return ResponseStates(
        layers=tuple(found[layer] for layer in layers), last=last, labels=labels.roll(-1, dims=1)[positions]
    )
