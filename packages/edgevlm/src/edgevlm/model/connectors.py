"""Projector (Section 3.3).

Shapes: I images, N visual tokens, E encoder features, D text features.
"""

from torch import Tensor, nn
from transformers.activations import ACT2FN


class Projector(nn.Module):
    """2-layer MLP from encoder to text features, [I, N, E] -> [I, N, D]; names and shapes are Llava's."""

    def __init__(self, num_inputs: int, num_outputs: int, *, hidden_act: str, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(num_inputs, num_outputs, bias=bias)
        self.act = ACT2FN[hidden_act]
        self.linear_2 = nn.Linear(num_outputs, num_outputs, bias=bias)

    def forward(self, features_ine: Tensor) -> Tensor:
        """Projects each visual token on its own."""
        projected: Tensor = self.linear_2(self.act(self.linear_1(features_ine)))
        return projected
