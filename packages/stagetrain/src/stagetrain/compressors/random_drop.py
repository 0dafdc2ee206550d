"""Random dropping: one token for every `stride` stays (section 3.2: dropping ratio 1 - 1/S)."""

import torch

from stagetrain.compressors.compressor import DROPPED, Compressor, Units, num_left


class RandomDrop(Compressor):
    """Keeps tokens drawn without replacement.

    In training every unit has a draw of its own from torch's random state. With a generator all units have the
    same draw, which follows from the generator's seed and the number of tokens alone, however many units there are.
    """

    name = "random"

    def assign(self, units: Units, stride: int) -> torch.Tensor:
        """See `Compressor.assign`."""
        num_units, num_tokens = len(units.states), units.num_tokens
        if units.generator is None:
            lots = torch.rand(num_units, num_tokens)
        else:
            # A generator of our own: what other units drew before from the given one must not matter.
            source = torch.Generator().manual_seed(units.generator.initial_seed())
            lots = torch.rand(1, num_tokens, generator=source).expand(num_units, -1)
        return keep_highest(lots.to(units.states.device), num_left(num_tokens, stride))


def keep_highest(values: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Slots where the `num_kept` tokens of highest value stay alone and all others are dropped, [U, L] -> [U, L].

    Slots are in the order of their tokens; of equal values the earlier token stays.
    """
    order = values.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(values, dtype=torch.bool).scatter_(1, order[:, :num_kept], True)
    return torch.where(kept, kept.cumsum(1) - 1, DROPPED)
