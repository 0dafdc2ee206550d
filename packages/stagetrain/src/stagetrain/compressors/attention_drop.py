"""Attention-based token dropping: the tokens that the question attends to most stay (section 3.2, after [14])."""

import torch

from stagetrain.compressors.compressor import Compressor, Units, num_left
from stagetrain.compressors.random_drop import keep_highest


class AttentionDrop(Compressor):
    """Keeps one token for every `stride`, by `Units.scores`."""

    name = "attention"
    needs_scores = True

    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """See `Compressor.assign`."""
        assert units.scores is not None
        return keep_highest(units.scores, num_left(units.num_tokens, stride))
