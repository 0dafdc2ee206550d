"""Positions merged into fewer tokens by their mean.

Shape suffixes: P positions, N tokens, D channels.
"""

import torch


def part_means(x_PD: torch.Tensor, part_P: torch.Tensor, num_parts: int) -> torch.Tensor:  # noqa: N803
    """Row n is the mean of all rows p with part[p] = n; at least float32 [N, D]; gradients flow.

    Every part has a row; rows of part -1 are left out.
    """
    wide = torch.promote_types(x_PD.dtype, torch.float32)
    member_NP = part_P == torch.arange(num_parts, device=part_P.device)[:, None]  # noqa: N806
    # Sums, then one division: means of equal rows are exact. A product and no scattered sums: those come in any
    # order on a GPU, and differ from run to run.
    return (member_NP.to(wide) @ x_PD.to(wide)) / member_NP.sum(dim=1, keepdim=True)
