"""Makes one token of all visual tokens that share a slot; everything else follows from the slots.

Shape legend: B rows, T tokens, P tokens after pooling (of the longest row), D features, U units, L tokens of
a unit, N slots of a unit.

The last token of a slot stands for it in masks: what it may see is everything that any token of the slot
may see, and whoever comes behind it comes behind the whole slot. Pooled tokens are in the order of their
last tokens, so a causal mask stays one. Text tokens are slots of one. Rows that end up shorter than others
are padded on the left, so that the last token stays last.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from stagetrain.compressors import DROPPED
from stagetrain.errors import PoolingUnsupportedError
from stagetrain.families.views import UnitGroup

Counted = tuple[UnitGroup, int]
"""Units and N, the number of slots of each."""

Planned = tuple[UnitGroup, torch.Tensor, int]
"""Units, their slots [U, L], and N."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Which tokens each pooled token is made of.

    Attributes:
        slots: Pooled token that each token goes into, [B, T] int64; P for a token that is left out.
        last: Last token of each pooled token, [B, P] int64; 0 for padding.
        sizes: Number of tokens in each pooled token, [B, P] int64; 0 for padding.
    """

    slots: torch.Tensor
    last: torch.Tensor
    sizes: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """Which pooled tokens are not padding, [B, P] bool."""
        return self.sizes > 0


def plan_pooling(like: torch.Tensor, units: Iterable[Planned], padding: torch.Tensor | None = None) -> PoolPlan:
    """Plan for units whose tokens a compressor has put into slots.

    Of the padding goes what would only make other rows' padding longer; all of it stays where nothing is pooled.

    Args:
        like: Tensor [B, T, ...] on the device of the plan.
        units: Units, their slots [U, L] in [0, N) or DROPPED, and N.
        padding: Which tokens are padding, [B, T] bool.

    Raises:
        PoolingUnsupportedError: A unit does not use just its N slots.
    """
    units = list(units)
    kept = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    for group, slots, count in units:
        place = torch.arange(slots.shape[1], device=like.device)
        _put(kept, group, last_members(slots, count).gather(1, _or_none(slots, count)) == place)
    padding = torch.zeros_like(kept) if padding is None else padding
    is_real = kept & ~padding
    num_real, num_padding = is_real.sum(1), padding.sum(1)
    width, total = torch.stack([num_real.max() + num_padding.min(), num_real.sum() + num_padding.sum()]).tolist()
    expected = kept.numel() - sum(len(group.rows) * (group.columns.shape[1] - count) for group, _, count in units)
    if total != expected:
        raise PoolingUnsupportedError(f"pooling: expected slots for {expected} tokens in all, got {total}")
    excess = (num_padding + num_real - width).clamp(min=0)
    kept = is_real | (padding & (padding.cumsum(1) > excess[:, None]))
    order = kept.cumsum(1) - 1
    order = torch.where(kept | ~padding, order + (width - 1 - order[:, -1:]), width)
    for group, slots, count in units:
        places = torch.nn.functional.pad(_places(order, group, slots, count), (0, 1), value=width)
        _put(order, group, places.gather(1, _or_none(slots, count)))
    return _plan_of_slots(order, width)


def _plan_of_slots(slots: torch.Tensor, num_slots: int) -> PoolPlan:
    place = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    # One slot more takes what is left out.
    empty = torch.zeros(len(slots), num_slots + 1, dtype=torch.int64, device=slots.device)
    return PoolPlan(
        slots=slots,
        last=empty.scatter_reduce(1, slots, place, "amax")[:, :-1],
        sizes=empty.scatter_add(1, slots, torch.ones_like(slots))[:, :-1],
    )


def last_members(slots: torch.Tensor, count: int) -> torch.Tensor:
    """Last token of every slot, [U, L] -> [U, N + 1]; the slot more is for tokens that are left out, and -1."""
    place = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    last = torch.full((len(slots), count + 1), -1, dtype=torch.int64, device=slots.device)
    last = last.scatter_reduce(1, _or_none(slots, count), place, "amax")
    return torch.cat([last[:, :-1], torch.full_like(last[:, -1:], -1)], 1)


def pool_states(states: torch.Tensor, plan: PoolPlan) -> torch.Tensor:
    """Mean of every slot, [B, T, D] -> [B, P, D]; padding is 0; sums in at least float32."""
    wide = states if states.dtype == torch.float64 else states.float()
    num_rows, num_slots = plan.sizes.shape
    sums = wide.new_zeros(num_rows, num_slots + 1, states.shape[-1])
    sums = sums.scatter_add(1, plan.slots[..., None].expand_as(wide), wide)[:, :-1]
    return (sums / plan.sizes.clamp(min=1)[..., None]).to(states.dtype)


def replace_states(
    pooled: torch.Tensor, plan: PoolPlan, group: UnitGroup, slots: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """Pooled states [B, P, D] where those of the units' slots are `states` [U, N, D] in place of means."""
    places = _places(plan.slots, group, slots, states.shape[1])
    return pooled.index_put((group.rows[:, None].expand_as(places), places), states.to(pooled.dtype))


def pool_positions(positions: torch.Tensor, plan: PoolPlan) -> torch.Tensor:
    """Mean position of every slot, floored, [..., B, T] -> [..., B, P] int64; padding is 0."""
    index = plan.slots.expand(*positions.shape[:-2], -1, -1)
    sums = torch.zeros((*index.shape[:-1], plan.sizes.shape[1] + 1), dtype=torch.int64, device=index.device)
    return sums.scatter_add(-1, index, positions.long().expand_as(index))[..., :-1] // plan.sizes.clamp(min=1)


def pool_labels(
    labels: torch.Tensor, units: Sequence[Counted], padding: torch.Tensor | None = None, ignored: int = -100
) -> torch.Tensor:
    """Labels [B, T] of the tokens that are left, [B, P].

    Only how many are left of a unit is known here, not which; no visual token has a label, so the last ones are
    as good as any. Nothing predicts a row's first token; padding put before it must not begin to.
    """
    numbered = [(group, _last_alone(group, count), count) for group, count in units]
    plan = plan_pooling(labels, numbered, padding)
    first = torch.arange(labels.shape[1], device=labels.device) == 0
    return torch.where(plan.real, labels.masked_fill(first, ignored).gather(1, plan.last), ignored)


def _last_alone(group: UnitGroup, count: int) -> torch.Tensor:
    num_units, num_tokens = group.columns.shape
    slots = torch.arange(num_tokens, device=group.columns.device) - (num_tokens - count)
    return slots.clamp(min=DROPPED).expand(num_units, -1)


def _or_none(slots: torch.Tensor, count: int) -> torch.Tensor:
    return torch.where(slots == DROPPED, count, slots)


def _put(values: torch.Tensor, group: UnitGroup, new: torch.Tensor) -> None:
    values[group.rows[:, None], group.columns] = new


def _places(order: torch.Tensor, group: UnitGroup, slots: torch.Tensor, count: int) -> torch.Tensor:
    """What `order` [B, T] holds for the last tokens of the units' slots, [U, N]."""
    columns = group.columns.gather(1, last_members(slots, count)[:, :-1])
    return order[group.rows[:, None], columns]
