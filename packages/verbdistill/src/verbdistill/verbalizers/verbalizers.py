"""Verbalizers: what an intermediate layer would say (VLsI, Sections 3.1 and 4.1b).

N tokens, h hidden size, V vocabulary size.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from verbdistill.errors import VerbalizersError
from verbdistill.losses.heads import Head
from verbdistill.models.parts import decoder_layers, final_norm, head_of, hidden_size
from verbdistill.models.states import ResponseStates
from verbdistill.models.targets import check_targets
from verbdistill.verbalizers.bodies import Body, draw_weights, make_body


class Verbalizers(nn.Module):
    """One verbalizer for each target layer of a model: a body of its own, the model's final norm, the model's head.

    Norm and head are borrowed: they are not in the state dict, and no gradient reaches them from here
    even while the backbone trains.

    Attributes:
        layers: The target layers, 1-based, ascending.
        hidden_size: h.
        kind: Of the bodies.
        depth: Blocks of a body.
        out_size: Width of the features.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int],
        kind: str = "verb_ffn",
        depth: int = 1,
        generator: torch.Generator | None = None,
        *,
        out_size: int | None = None,
        is_bare: bool = False,
        dtype: torch.dtype | None = None,
        owner: str = "model",
    ) -> None:
        """Draws new bodies beside `model`, on its device.

        Args:
            model: The backbone; its norm and head are read at every use.
            layers: 1-based target layers, ascending.
            kind: See `make_body`.
            depth: See `make_body`.
            generator: Of the weights, on the CPU.
            out_size: See `make_body`; another width only where they are bare.
            is_bare: Whether bodies stand alone, without norm and head: for the ablation that compares their
                features themselves (Table 4d).
            dtype: Of the bodies; None takes the head's.
            owner: What messages call the model.

        Raises:
            TargetError: `layers` do not fit the model.
            UnsupportedModelError: The model's parts are not where they are looked for.
            VerbalizersError: Unknown kind or depth, or a width that the norm cannot read.
        """
        super().__init__()
        self.layers = check_targets(layers, len(decoder_layers(model)), owner)
        self.hidden_size = hidden_size(model)
        self.kind, self.depth = kind, depth
        self.out_size = self.hidden_size if out_size is None else out_size
        if not is_bare and self.out_size != self.hidden_size:
            raise VerbalizersError(
                f"verbalizers: out_size: expected {self.hidden_size}, which the norm reads, got {self.out_size}"
            )
        # A tuple's modules are not registered as children.
        self._borrowed = (model, None if is_bare else final_norm(model))
        weight = head_of(model).weight
        with torch.random.fork_rng(devices=[]), weight.device:
            bodies = {
                str(layer): make_body(model, layer, kind=kind, depth=depth, out_size=out_size) for layer in self.layers
            }
        self.bodies = nn.ModuleDict(bodies)
        self.to(weight.dtype if dtype is None else dtype)
        if weight.device.type != "meta":
            for body in self:
                draw_weights(body, generator)

    def __iter__(self) -> Iterator[Body]:
        """The bodies; each has parameters of its own."""
        return (body for body in self.bodies.values() if isinstance(body, Body))

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def is_bare(self) -> bool:
        """Whether neither norm nor head follow the bodies."""
        return self._borrowed[1] is None

    @property
    def reads_whole(self) -> bool:
        """Whether `features` needs states of all positions: response_states(..., whole=verbalizers.reads_whole)."""
        return self.kind == "decoder"

    @property
    def head(self) -> Head:
        """The borrowed head as it is now, without gradients.

        Raises:
            VerbalizersError: These are bare bodies, which no head reads.
        """
        model, norm = self._borrowed
        if norm is None:
            raise VerbalizersError("verbalizers: head: expected verbalizers with norm and head, got bare bodies")
        head = head_of(model)
        return Head(head.weight.detach(), None if head.bias is None else head.bias.detach())

    def features(self, states: ResponseStates) -> tuple[Tensor, ...]:
        """What the head reads of every target, [N, out_size] each: body, then the borrowed final norm.

        Args:
            states: Of these target layers; whole ones if `reads_whole`.

        Raises:
            VerbalizersError: The states are of other layers, or not whole where they must be.
        """
        if len(states.layers) != len(self):
            raise VerbalizersError(f"states: expected those of {len(self)} target layers, got {len(states.layers)}")
        if states.is_whole != self.reads_whole:
            wanted, got = ("all positions", "response tokens")[:: 1 if self.reads_whole else -1]
            raise VerbalizersError(f"states: expected those of {wanted} for kind {self.kind}, got those of {got}")
        arguments = states.arguments or (None,) * len(self)
        return tuple(
            self._normed(body(part.to(_dtype(body)), given)[states.positions if self.reads_whole else ...])
            for body, part, given in zip(self, states.layers, arguments, strict=True)
        )

    def _normed(self, features: Tensor) -> Tensor:
        """A body's output [..., h] after the borrowed norm, in the head's type; as it is without a norm."""
        model, norm = self._borrowed
        if norm is None:
            return features
        frozen = {name: parameter.detach() for name, parameter in norm.named_parameters()}
        read: Tensor = functional_call(norm, frozen, (features.to(head_of(model).weight.dtype),))
        return read


def _dtype(body: Body) -> torch.dtype:
    return next(body.parameters()).dtype
