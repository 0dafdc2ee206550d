"""A query transformer before the decoder (Table 3): learned queries read a unit's projected tokens, as BLIP-2's [18].

Shape legend: U units, L visual tokens, D the decoder's features, N queries, E the query transformer's features.
"""

from dataclasses import dataclass

import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from stagetrain.compressors.average import AveragePool
from stagetrain.compressors.compressor import Units, num_left
from stagetrain.errors import CompressionError

_QUERY_STD = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class QFormerShape:
    """Sizes of the query transformer.

    Attributes:
        hidden_size: E.
        num_layers: Layers; every other one, the first among them, reads the visual tokens.
        num_heads: Attention heads; divides `hidden_size`.
        intermediate_size: Of the feed-forward layers.
        dropout: In training, on hidden states and attention.

    Raises:
        CompressionError: A number is out of its range.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.hidden_size, self.num_layers, self.num_heads, self.intermediate_size)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise CompressionError(f"q_former: expected positive sizes, got {', '.join(map(str, sizes))}")
        if self.hidden_size % self.num_heads or not 0 <= self.dropout < 1:
            raise CompressionError(
                f"q_former: expected heads that divide {self.hidden_size} and a dropout in [0, 1), got"
                f" {self.num_heads} and {self.dropout}"
            )


PAPER_SHAPE = QFormerShape(hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072, dropout=0.1)
"""BERT-base, which BLIP-2's query transformer is and the paper's 105M parameters are of."""


def small_shape(hidden_size: int) -> QFormerShape:
    """Two layers as wide as a decoder of `hidden_size`, at most as wide as BERT-base; heads of about 64, or four."""
    width = min(hidden_size, PAPER_SHAPE.hidden_size)
    heads = next(count for count in range(max(4, width // 64), 0, -1) if width % count == 0)
    return QFormerShape(hidden_size=width, num_layers=2, num_heads=heads, intermediate_size=4 * width)


class QueryTransformer(AveragePool):
    """Windows of `stride` neighbours for masks and positions, the outputs of a small query transformer for states."""

    name = "q_former"
    is_learned = True

    def build(self, hidden_size: int, num_slots: int) -> "QFormer":
        """See `Compressor.build`."""
        return QFormer(hidden_size, num_slots, self.shape(hidden_size))

    def shape(self, hidden_size: int) -> QFormerShape:
        """Sizes of the query transformer before a decoder of `hidden_size`."""
        return small_shape(hidden_size)


class BaseQueryTransformer(QueryTransformer):
    """The same with the sizes of BERT-base, as the paper has it."""

    name = "q_former_base"

    def shape(self, hidden_size: int) -> QFormerShape:
        """See `QueryTransformer.shape`."""
        return PAPER_SHAPE


class QFormer(torch.nn.Module):
    """The learned queries and their transformer, `transformers.Blip2QFormerModel`.

    Args:
        hidden_size: D.
        num_queries: Most queries a unit can have; one with fewer tokens uses the first of them.
        shape: Sizes of the transformer.

    Attributes:
        num_slots: `num_queries`; a shard of the queries would not tell.
        shape: Of the arguments.
    """

    def __init__(self, hidden_size: int, num_queries: int, shape: QFormerShape) -> None:
        super().__init__()
        self.num_slots, self.shape = num_queries, shape
        config = Blip2QFormerConfig(
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.intermediate_size,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
            encoder_hidden_size=hidden_size,
        )
        self.queries = torch.nn.Parameter(torch.randn(num_queries, shape.hidden_size) * _QUERY_STD)
        self.former = Blip2QFormerModel(config)
        self.output = torch.nn.Linear(shape.hidden_size, hidden_size)

    def forward(self, units: Units, stride: int) -> torch.Tensor:
        """The queries' outputs, [U, N, D], of the dtype of the states.

        Raises:
            CompressionError: A unit needs more queries than there are.
        """
        num_slots = num_left(units.num_tokens, stride)
        if num_slots > len(self.queries):
            raise CompressionError(
                f"q_former: expected at most {len(self.queries)} queries a unit, got {units.num_tokens} visual tokens"
                f" at stride {stride}, which need {num_slots}"
            )
        queries = self.queries[:num_slots].expand(len(units.states), -1, -1)
        states = self.former(query_embeds=queries, encoder_hidden_states=units.states).last_hidden_state
        return self.output(states.to(self.output.weight.dtype)).to(units.states.dtype)
