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

_CACHING = ("past_key_values", "use_cache")
"""Arguments of a decoder layer that a layer beside it must not share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseStates:
    """What one forward leaves of a batch's response tokens.

    Attributes:
        layers: Output of each asked-for decoder layer before the final norm: also for the last layer, whose
            entry in transformers' hidden_states is after it. So a verbalizer applies the final norm itself,
            the same way for every layer. [N, h] each; whole states [B, T, h] where they were asked for.
        last: What the language head reads, [N, h], after the final norm.
        labels: Token ids to predict, [N].
        positions: Where they are predicted, bool [B, T]; row after row they are the N tokens.
        arguments: With whole states, what each of these layers was called with beside its input (attention mask,
            rotary tables), else none.
    """

    layers: tuple[Tensor, ...]
    last: Tensor
    labels: Tensor
    positions: Tensor
    arguments: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the layers' states are of all positions."""
        return bool(self.arguments)


def response_positions(labels: Tensor) -> Tensor:
    """True where the next position's label is a response token; labels [B, T] -> bool [B, T].

    Raises:
        BatchError: A row has none; names the first such row.
    """
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED
    without = (~positions.any(1)).nonzero().flatten().tolist()
    if without or not len(labels):
        where = f"row {without[0]}" if without else "no row"
        raise BatchError(f"labels: {where}: expected at least one response token after the first position, got none")
    return positions


def response_states(
    model: nn.Module, batch: Mapping[str, Tensor], layers: Sequence[int], *, whole: bool = False
) -> ResponseStates:
    """Runs a model without its language head; keeps response tokens of some layers only.

    Hooks pick the tokens as each layer ends, so other positions' states are not kept for the caller.
    A graph is made or not as the caller's grad mode says.

    Args:
        model: The model.
        batch: What the model's own processor makes; every key but `labels` goes to the model.
        layers: 1-based decoder layers, ascending.
        whole: Keeps the layers' states of all positions, for bodies that look at other tokens.

    Raises:
        BatchError: No labels, or a row without a response token.
        UnsupportedModelError: The model's parts are not where they are looked for.
    """
    if "labels" not in batch:
        raise BatchError(f"batch: expected labels, got {', '.join(sorted(batch))}")
    labels = batch["labels"]
    positions = response_positions(labels)
    found: dict[int, Tensor] = {}
    arguments: dict[int, Mapping[str, Any]] = {}
    blocks = decoder_layers(model)
    with ExitStack() as hooks:
        for layer in layers:

            def keep(_module: nn.Module, _inputs: Any, given: Any, output: Any, layer: int = layer) -> None:
                states = output[0] if isinstance(output, tuple) else output
                found[layer] = states if whole else states[positions]
                if whole:
                    arguments[layer] = {name: value for name, value in given.items() if name not in _CACHING}

            hooks.callback(blocks[layer - 1].register_forward_hook(keep, with_kwargs=True).remove)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        last = base_model(model)(**inputs, use_cache=False).last_hidden_state[positions]
    return ResponseStates(
        layers=tuple(found[layer] for layer in layers),
        last=last,
        labels=labels.roll(-1, dims=1)[positions],
        positions=positions,
        arguments=tuple(arguments[layer] for layer in layers) if whole else (),
    )
