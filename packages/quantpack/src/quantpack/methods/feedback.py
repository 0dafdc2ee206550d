"""Rounding with error feedback: the numeric core of GPTQ.

With D = W - Q the output error is tr(D M D^T). Let M = L L^T with L lower triangular; then a row d of D costs
sum over k of L_kk^2 (d_k + sum_{j>k} d_j L_jk / L_kk)^2. Rounding k from the last input to the first, every d_j with
j > k is known, so the best code is the nearest one to w_k + sum_{j>k} d_j L_jk / L_kk. This is GPTQ's update: its upper
Cholesky factor of M^-1 is, up to the order of the inputs, L^-1 (QuIP, Chee et al. 2023, proves the two
equal). Here M is never inverted: one factorization in place instead of two and an inverse, and less rounding error.

Shape letters: O outputs, I inputs, B inputs of a block. Inputs lie in reverse of the order they are rounded in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantpack.errors import CalibrationError

_NUM_ATTEMPTS = 4
_LEAST_RAISED_DAMPING = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """How the error of each input is passed on.

    Attributes:
        ratios: [I, I] float32, unit lower triangular: L_jk / L_kk; strides (1, I).
        layout: [I] int64, the input at each row and column of `ratios`; the last is rounded first.
    """

    ratios: Tensor
    layout: Tensor


def factorize(second_moment: Tensor, *, damping: float, activation_order: bool, name: str) -> Feedback:
    """Factorizes a second moment [I, I] float32, which is not changed; one further [I, I] matrix is alive at a time.

    A dead input (diagonal 0) is decoupled from the others, so its weights go to their nearest codes. When the matrix is
    not positive definite with the damping asked for, the damping is raised tenfold, three times at most.

    Args:
        second_moment: The mean of x x^T.
        damping: Added to the diagonal, relative to its mean.
        activation_order: True: inputs with the largest second moment are rounded first.
        name: The weight's name, for errors.

    Raises:
        CalibrationError: No damping tried was enough.
    """
    energy = second_moment.diagonal()
    order = torch.argsort(energy, descending=True, stable=True) if activation_order else torch.arange(len(energy))
    layout = order.flip(0)
    mean = float(energy.mean()) or 1.0
    tried = damping
    for _ in range(_NUM_ATTEMPTS):
        # Read by columns below. The matrix is symmetric: its transpose holds the same and is stored by columns.
        factor = second_moment[layout[:, None], layout].mT
        diagonal = factor.diagonal()
        diagonal[diagonal == 0] = mean
        diagonal += tried * mean
        info = torch.empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if info == 0 and bool(torch.isfinite(diagonal).all()):
            factor /= diagonal.clone()
            return Feedback(ratios=factor, layout=layout)
        tried = max(10 * tried, _LEAST_RAISED_DAMPING)
    raise CalibrationError(
        f"{name}: activations: second_moment: expected a positive semidefinite matrix, "
        f"got one that a damping of {tried / 10:g} does not make positive"
    )


def feed_back(
    weight: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int, feedback: Feedback, block_size: int
) -> Tensor:
    """Codes [O, I] int8 of a weight [O, I] on the grid (code - zero) * scale; scale and zero are [O, I] float32."""
    num_outputs, num_inputs = weight.shape
    errors = torch.empty(num_inputs, num_outputs)
    codes = torch.empty(num_inputs, num_outputs, dtype=torch.int8)
    for stop in range(num_inputs, 0, -block_size):
        block = slice(max(stop - block_size, 0), stop)
        inputs = feedback.layout[block]
        # Within a block, one input is a contiguous row [O].
        weight_block = weight[:, inputs].T.float().contiguous()
        carried = feedback.ratios[stop:, block].T @ errors[stop:]
        codes[inputs] = _round_block(
            weight_block,
            carried,
            scale[:, inputs].T.contiguous(),
            zero[:, inputs].T.contiguous(),
            (lowest, highest),
            feedback.ratios[block, block],
            errors[block],
        )
    return codes.T.contiguous()


def _round_block(
    weight: Tensor,
    carried: Tensor,
    scale: Tensor,
    zero: Tensor,
    limits: tuple[int, int],
    ratios: Tensor,
    errors: Tensor,
) -> Tensor:
    """Codes [B, O] of the inputs of a block, last to first; fills `errors` [B, O] with what each leaves.

    `carried` [B, O] is what the inputs rounded before this block leave to it; `ratios` is [B, B].
    """
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for place in range(len(weight) - 1, -1, -1):
        wanted = weight[place] + carried[place] + ratios[place + 1 :, place] @ errors[place + 1 :]
        code = (wanted / scale[place]).round_().add_(zero[place]).clamp_(*limits)
        errors[place] = weight[place] - (code - zero[place]) * scale[place]
        codes[place] = code
    return codes
