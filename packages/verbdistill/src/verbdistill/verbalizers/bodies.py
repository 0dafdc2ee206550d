"""What a verbalizer does to a layer's states before the final norm (VLsI, Section 4.1b, Table 4f and Appendix D).

h hidden size, i the model's own intermediate size, N tokens, B rows, T positions.

All matrices start at N(0, 1 / columns), which keeps variance: the final norm follows with nothing beside the body, so
a small or zero last matrix, usual where a residual is added, would feed the norm vectors near zero, whose gradient
grows as one over their length. A decoder layer has residuals of its own: the matrices that write to them start at zero,
so that it begins by letting norm and head read the layer's states as they are.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from verbdistill.errors import VerbalizersError
from verbdistill.models.parts import decoder_layers, hidden_size, text_config

Kind = Literal["verb_ffn", "mlp", "ffn", "decoder"]
KINDS: tuple[str, ...] = get_args(Kind)
DEPTHS = (1, 2)

_RESIDUAL_WRITERS = ("o_proj", "out_proj", "down_proj")


class GatedFFN(nn.Module):
    """down(silu(gate x) * up x) without biases."""

    def __init__(self, in_size: int, inner_size: int, out_size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(in_size, inner_size, bias=False)
        self.up = nn.Linear(in_size, inner_size, bias=False)
        self.down = nn.Linear(inner_size, out_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """States [..., in] -> [..., out]."""
        transformed: Tensor = self.down(F.silu(self.gate(states)) * self.up(states))
        return transformed


class Body(nn.Module):
    """One or two equal blocks, one behind the other.

    Attributes:
        reads_whole: Whether it needs states of all positions [B, T, h] and its layer's arguments.
        out_size: Width of what it gives.
    """

    def __init__(self, blocks: list[nn.Module], *, reads_whole: bool, out_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.reads_whole = reads_whole
        self.out_size = out_size

    def forward(self, states: Tensor, arguments: Mapping[str, Any] | None = None) -> Tensor:
        """States [..., h] -> [..., out_size].

        Args:
            states: [N, h]; [B, T, h] if `reads_whole`.
            arguments: What the decoder layer was called with, if `reads_whole`.
        """
        given = _typed(arguments or {}, states.dtype) if self.reads_whole else {}
        for number, block in enumerate(self.blocks):
            if number and not self.reads_whole:
                # Gated blocks square the length of what they read; two of them would leave it anywhere.
                states = _between(states, bends=not isinstance(block, GatedFFN))
            output = block(states, **given)
            states = output[0] if isinstance(output, tuple) else output
        return states


def make_body(model: nn.Module, layer: int, *, kind: str, depth: int, out_size: int | None = None) -> Body:
    """A body for a target layer, beside the model: on its device, weights not drawn yet.

    Args:
        model: The backbone.
        layer: 1-based target layer; a decoder body is made as that layer of the decoder's own class.
        kind: "verb_ffn": gated, all three matrices h x h. "mlp": one h x h matrix. "ffn": gated with the model's
            own intermediate size. "decoder": a decoder layer, over all positions.
        depth: 1, or 2 for two of them in a row.
        out_size: Another width to end in (verb_ffn only): to the width of a wider model's features.

    Raises:
        VerbalizersError: Unknown kind or depth, or another width for a kind that has none.
    """
    if kind not in KINDS or depth not in DEPTHS:
        raise VerbalizersError(
            f"verbalizers: expected a kind of {', '.join(KINDS)} and a depth of 1 or 2, got {kind!r} and {depth!r}"
        )
    size = hidden_size(model)
    end = size if out_size is None else out_size
    if end < 1 or (kind != "verb_ffn" and end != size):
        raise VerbalizersError(f"verbalizers: out_size: expected {size} for kind {kind}, got {end}")
    widths = ((size, end), (end, end))[:depth]
    blocks: list[nn.Module]
    if kind == "decoder":
        blocks = [_decoder_layer(model, layer) for _ in widths]
    elif kind == "mlp":
        blocks = [nn.Linear(*pair, bias=False) for pair in widths]
    elif kind == "ffn":
        inner = int(text_config(model).intermediate_size)
        blocks = [GatedFFN(size, inner, size) for _ in widths]
    else:
        blocks = [GatedFFN(first, second, second) for first, second in widths]
    return Body(blocks, reads_whole=kind == "decoder", out_size=end)


@torch.no_grad()
def draw_weights(body: Body, generator: torch.Generator | None) -> None:
    """Draws all matrices of a body; the reason for their variances is at the top of this file.

    Norms stay as they were made, all else without a matrix is zero: biases, attention sinks. Experts are
    stacks of matrices [experts, rows, columns].
    """
    norms = {name for name, module in body.named_modules() if "norm" in type(module).__name__.lower()}
    for name, parameter in body.named_parameters():
        if name.rpartition(".")[0] in norms:
            continue
        if parameter.ndim < 2 or (body.reads_whole and name.removesuffix(".weight").endswith(_RESIDUAL_WRITERS)):
            parameter.zero_()
        else:
            # On the CPU, where the generator is: the same weights on every device.
            drawn = torch.empty(parameter.shape).normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
            parameter.copy_(drawn)


def _decoder_layer(model: nn.Module, layer: int) -> nn.Module:
    """A new layer as the decoder's own, knowing the same place and sharing its configuration.

    So it always reads masks as the model makes them, of whichever attention implementation.
    """
    made: nn.Module = type(decoder_layers(model)[layer - 1])(text_config(model), layer_idx=layer - 1)
    return made


def _between(states: Tensor, *, bends: bool) -> Tensor:
    """States between two blocks at length sqrt(h); two matrices with nothing between them would be one."""
    states = F.silu(states) if bends else states
    return F.rms_norm(states, states.shape[-1:], eps=torch.finfo(states.dtype).tiny)


def _typed(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors of arguments in the body's own type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: _typed(part, dtype) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_typed(part, dtype) for part in value)
    return value
