"""What a loss between every teacher target and every student target gives."""

from abc import ABC, abstractmethod

from torch import Tensor


class PairLosses(ABC):
    """Losses of t_s student targets against t_l teacher targets over N response tokens.

    Attributes:
        sums: Summed over the tokens, without a graph, float64 [t_s, t_l] on the CPU: of several processes they add up.
        num_tokens: N.
    """

    sums: Tensor
    num_tokens: int

    @abstractmethod
    def weighted(self, weights: Tensor) -> Tensor:
        """Sum over tokens and pairs of weight times loss; differentiable in the student's features.

        Args:
            weights: float [t_s, t_l]; rows of a match have a 1, averages over several teacher targets parts of it.
        """
