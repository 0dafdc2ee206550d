"""Token-centric compression after VCC [43]: what the question attends to stays whole, the rest is pooled harder.

Windows of 2S neighbours are one slot each, except the few that get the most attention: their tokens stay single.
As many windows are opened as bring the number of slots to one for S tokens or just above it. For L = 576 and S = 8
that is 33 + 3 * 16 = 81 slots, and 2 * 576 + 30 * 81 = 3582 tokens over 32 layers, as Table 2 prints.
"""

import torch

from stagetrain.compressors.compressor import Compressor, Units, num_left


class TokenCentric(Compressor):
    """Opens the windows of 2S tokens with the highest mean of `Units.scores`; a last, smaller window stays closed."""

    name = "vcc"
    needs_scores = True

    def count(self, sides: tuple[int, int], stride: int) -> int:
        """See `Compressor.count`."""
        num_tokens, width = sides[0] * sides[1], 2 * stride
        return num_left(num_tokens, width) + num_opened(num_tokens, stride) * (width - 1)

    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """See `Compressor.assign`."""
        assert units.scores is not None
        num_tokens, width = units.num_tokens, 2 * stride
        scores = units.scores[:, : num_tokens // width * width].unflatten(1, (-1, width)).mean(2)
        chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : num_opened(num_tokens, stride)]
        opened = torch.zeros(len(scores), num_left(num_tokens, width), dtype=torch.bool, device=scores.device)
        opened.scatter_(1, chosen, True)
        place = torch.arange(num_tokens, device=scores.device)
        begins = opened[:, place // width] | (place % width == 0)
        return begins.cumsum(1) - 1


def num_opened(num_tokens: int, stride: int) -> int:
    """Windows whose tokens stay single: (L/S - L/2S) / (2S - 1), rounded up; only whole windows can be."""
    width = 2 * stride
    # Whole numbers alone: L / (2S (2S - 1)).
    return min(-(-num_tokens // (width * (width - 1))), num_tokens // width)
