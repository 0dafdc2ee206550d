"""Verbalizers: what an intermediate layer would say (VLsI, Sections 3.1 and 4.1b).

N tokens, h hidden size, V vocabulary size.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from verbdistill.models.parts import decoder_layers, final_norm, hidden_size, language_head
from verbdistill.models.targets import check_targets


class VerbFFN(nn.Module):
    """Gated FFN that keeps its width: down(silu(gate x) * up x), three h x h matrices."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.up = nn.Linear(hidden_size, hidden_size, bias=False)
        self.down = nn.Linear(hidden_size, hidden_size, bias=False)

    def reset(self, generator: torch.Generator | None) -> None:
        """Draws all weights from N(0, 1 / h).

        Variance-preserving on purpose: the final norm follows with nothing beside the FFN, so a small or zero
        `down`, usual where a residual is added, would feed the norm vectors near zero, whose gradient grows as
        one over their length.
        """
        for linear in (self.gate, self.up, self.down):
            std = linear.in_features**-0.5
            weight = torch.empty(linear.weight.shape).normal_(std=std, generator=generator)
            with torch.no_grad():
                linear.weight.copy_(weight)

    def forward(self, states: Tensor) -> Tensor:
        """States [..., h] -> [..., h]."""
        transformed: Tensor = self.down(F.silu(self.gate(states)) * self.up(states))
        return transformed


class Verbalizer(nn.Module):
    """A verb-FFN, then the backbone's final norm and language head.

    Norm and head are borrowed: they are not in the state dict, and no gradient reaches them from here
    even while the backbone trains.
    """

    def __init__(self, hidden_size: int, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.ffn = VerbFFN(hidden_size)
        # Modules inside a tuple are not registered as children.
        self._borrowed = (norm, head)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [N, V] of a layer's states [N, h] (before the final norm)."""
        logits = self.ffn(states)
        for module in self._borrowed:
            frozen = {name: parameter.detach() for name, parameter in module.named_parameters()}
            logits = functional_call(module, frozen, (logits,))
        return logits


class Verbalizers(nn.Module):
    """One verbalizer for each target layer of a model.

    Attributes:
        layers: The target layers, 1-based, ascending.
        hidden_size: h.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[int], generator: torch.Generator | None = None, owner: str = "model"
    ) -> None:
        """Draws new verb-FFNs beside `model`, in its device and type.

        Raises:
            TargetError: `layers` do not fit the model.
            UnsupportedModelError: It is not Llava-like.
        """
        super().__init__()
        self.layers = check_targets(layers, len(decoder_layers(model)), owner)
        self.hidden_size = hidden_size(model)
        norm, head = final_norm(model), language_head(model)
        self.by_layer = nn.ModuleDict({str(layer): Verbalizer(self.hidden_size, norm, head) for layer in self.layers})
        self.to(next(head.parameters()))
        if next(head.parameters()).device.type != "meta":
            for verbalizer in self:
                verbalizer.ffn.reset(generator)

    def __iter__(self) -> Iterator[Verbalizer]:
        return iter(cast(Iterable[Verbalizer], self.by_layer.values()))

    def __len__(self) -> int:
        return len(self.layers)

    def forward(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Logits [N, V] of every target from its layer's states [N, h]."""
        return [verbalizer(part) for verbalizer, part in zip(self, states, strict=True)]
