"""Chooses next tokens from logits; each request draws from its own generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from edgevlm.serving.requests import Sampling


class Sampler:
    """Draws tokens of one request: the same seed gives the same answer, whoever else is in the batch."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.is_greedy = sampling.temperature == 0
        self._sampling = sampling
        self._generator: torch.Generator | None = None
        if not self.is_greedy:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def draw(self, logits_v: Tensor) -> int:
        """A token by its probability among the likeliest that reach `top_p`; logits [V]."""
        if self.is_greedy:
            return int(logits_v.argmax())
        probabilities = (logits_v.float() / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p == 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        sorted_v, order_v = probabilities.sort(descending=True, stable=True)
        # A token stays while those before it do not reach top_p, so the likeliest always does.
        kept_v = sorted_v.where(sorted_v.cumsum(-1) - sorted_v < self._sampling.top_p, 0)
        return int(order_v[torch.multinomial(kept_v, 1, generator=self._generator)])


def next_tokens(logits_bv: Tensor, samplers: Sequence[Sampler]) -> list[int | Exception]:
    """The next token of each row, or why there is none: probabilities that are no numbers fail their own row alone."""
    greedy: list[int] = logits_bv.argmax(-1).tolist()
    chosen: list[int | Exception] = []
    for row, sampler in enumerate(samplers):
        try:
            chosen.append(greedy[row] if sampler.is_greedy else sampler.draw(logits_bv[row]))
        except RuntimeError as error:
            chosen.append(error)
    return chosen
