"""Collects what a site reads, token by token, without keeping the tokens.

Shape letters: N tokens, I inputs, S sampled tokens.
"""

import torch
from torch import Tensor

from quantpack.calibration.sites import Activations
from quantpack.errors import CalibrationError

NUM_SAMPLES = 512
SEED = 0
# Tokens turned to float32 at a time.
_CHUNK = 4096


class Observer:
    """Maxima, means, second moments and a uniform sample of the tokens that one site reads.

    The sample: every token draws a number from a generator with a fixed seed, the NUM_SAMPLES
    smallest stay. So every token is as likely as any other, however many come, and sites that see
    the same tokens keep the same ones.
    """

    def __init__(self, num_inputs: int, *, second_moment: bool) -> None:
        self._num_tokens = 0
        self._max_abs = torch.zeros(num_inputs)
        self._sum_abs = torch.zeros(num_inputs, dtype=torch.float64)
        self._sum_products = torch.zeros(num_inputs, num_inputs) if second_moment else None
        self._generator = torch.Generator().manual_seed(SEED)
        self._draws = torch.empty(0)
        self._samples = torch.empty(0, num_inputs)
        self._is_visual = torch.empty(0, dtype=torch.bool)

    def add(self, tokens: Tensor, is_visual: Tensor, where: str) -> None:
        """Counts tokens [N, I] in; `is_visual` [N].

        Raises:
            CalibrationError: A token holds NaN or infinity; the message starts with `where`.
        """
        for begin in range(0, tokens.shape[0], _CHUNK):
            chunk = tokens[begin : begin + _CHUNK].detach().float().cpu()
            highest = chunk.abs().amax(0)
            if not bool(torch.isfinite(highest).all()):
                raise CalibrationError(f"{where}: expected finite activations, got NaN or infinity")
            self._num_tokens += chunk.shape[0]
            torch.maximum(self._max_abs, highest, out=self._max_abs)
            self._sum_abs += chunk.abs().sum(0, dtype=torch.float64)
            if self._sum_products is not None:
                self._sum_products.addmm_(chunk.T, chunk)
            self._draw(chunk, is_visual[begin : begin + _CHUNK].cpu())

    @property
    def num_tokens(self) -> int:
        """Tokens counted in so far."""
        return self._num_tokens

    def result(self) -> Activations:
        """What was seen; at least one token must have been, and none can come after."""
        second_moment, self._sum_products = self._sum_products, None
        return Activations(
            num_tokens=self._num_tokens,
            max_abs=self._max_abs,
            mean_abs=(self._sum_abs / self._num_tokens).float(),
            second_moment=None if second_moment is None else second_moment.div_(self._num_tokens),
            samples=self._samples,
            is_visual=self._is_visual,
        )

    def _draw(self, chunk: Tensor, is_visual: Tensor) -> None:
        draws = torch.cat((self._draws, torch.rand(chunk.shape[0], generator=self._generator)))
        if len(draws) <= NUM_SAMPLES:
            kept = torch.arange(len(draws))
        else:
            kept = draws.topk(NUM_SAMPLES, largest=False).indices.sort().values
        self._draws = draws[kept]
        earlier, new = kept[kept < len(self._samples)], kept[kept >= len(self._samples)] - len(self._samples)
        self._samples = torch.cat((self._samples[earlier], chunk[new]))
        self._is_visual = torch.cat((self._is_visual[earlier], is_visual[new]))
