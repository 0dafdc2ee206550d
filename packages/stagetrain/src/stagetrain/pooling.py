"""Average pooling of the visual tokens of a sequence; the paper's Visual Context Compressor (section 3.2).

Shape legend: B rows, T tokens, P tokens after pooling (of the longest row), D features.

A window is `stride` neighbouring tokens of one image in raster order. Windows never cross from one
image to another or to text; what remains of an image forms a last, smaller window. Text tokens are
windows of one. The last token of a window stands for it in masks: what it may see is everything
that any token of its window may see, and whoever comes behind it comes behind the whole window.
Rows that end up shorter than others are padded on the left, so that the last token stays last.
"""

from dataclasses import dataclass

import torch

from stagetrain.errors import PoolingUnsupportedError

TEXT = -1
"""Image number of a text token."""


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Which tokens each pooled token is made of.

    Attributes:
        slots: Pooled token that each token goes into, [B, T] int64.
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


def number_images(visual: torch.Tensor, num_images: int) -> torch.Tensor:
    """Number of the image each token belongs to, TEXT for text.

    Args:
        visual: Image placeholders, [B, T] bool; images follow each other row by row.
        num_images: How many images they stand for. Runs of placeholders are images where there are
            as many; images side by side are told apart by their equal length.

    Returns:
        [B, T] int64.

    Raises:
        PoolingUnsupportedError: Images stand side by side and are not of equal length.
    """
    before = torch.nn.functional.pad(visual[:, :-1], (1, 0))
    run = (visual & ~before).flatten().cumsum(0) - 1
    num_runs, total = int(run[-1]) + 1, int(visual.sum())
    if num_runs != num_images:
        length = total // num_images if num_images else 0
        if not length or total % num_images or bool((run[visual.flatten()].bincount() % length).any()):
            raise PoolingUnsupportedError(
                f"pooling: expected {num_images} images of equal length, got {total} placeholders in {num_runs} runs"
            )
        run = (visual.flatten().cumsum(0) - 1) // length
    return torch.where(visual, run.view_as(visual), TEXT)


def plan_pooling(images: torch.Tensor, stride: int) -> PoolPlan:
    """Plan for windows of `stride` tokens, from image numbers [B, T] (TEXT for text)."""
    place = torch.arange(images.shape[1], device=images.device).expand_as(images)
    begins = torch.ones_like(images, dtype=torch.bool)
    begins[:, 1:] = images[:, 1:] != images[:, :-1]
    start = torch.where(begins, place, 0).cummax(1).values
    opens = (images == TEXT) | ((place - start) % stride == 0)
    slots = opens.cumsum(1) - 1
    lengths = slots[:, -1:] + 1
    num_slots = int(lengths.max())
    slots = slots + num_slots - lengths
    empty = torch.zeros(images.shape[0], num_slots, dtype=torch.int64, device=images.device)
    return PoolPlan(
        slots=slots,
        last=empty.scatter_reduce(1, slots, place, "amax"),
        sizes=empty.scatter_add(1, slots, torch.ones_like(slots)),
    )


def pool_states(states: torch.Tensor, plan: PoolPlan) -> torch.Tensor:
    """Mean of every window, [B, T, D] -> [B, P, D]; padding is 0; sums in at least float32."""
    wide = states if states.dtype == torch.float64 else states.float()
    shape = (*plan.sizes.shape, states.shape[-1])
    sums = wide.new_zeros(shape).scatter_add(1, plan.slots[..., None].expand_as(wide), wide)
    return (sums / plan.sizes.clamp(min=1)[..., None]).to(states.dtype)


def pool_positions(positions: torch.Tensor, plan: PoolPlan) -> torch.Tensor:
    """Mean position of every window, floored, [B, T] -> [B, P] int64; padding is 0."""
    sums = torch.zeros_like(plan.sizes).scatter_add(1, plan.slots, positions.long())
    return sums // plan.sizes.clamp(min=1)


def pool_labels(labels: torch.Tensor, plan: PoolPlan, ignored: int = -100) -> torch.Tensor:
    """Label of every window's last token, [B, T] -> [B, P]; padding is ignored, as visual tokens are.

    Nothing predicts a row's first token; padding put before it must not begin to.
    """
    first = torch.arange(labels.shape[1], device=labels.device) == 0
    return torch.where(plan.real, labels.masked_fill(first, ignored).gather(1, plan.last), ignored)


def pool_padding_mask(mask: torch.Tensor, columns: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Entries of a 2-D padding mask [B, K] at `columns` [B, Q], 0 where not real."""
    return mask.gather(1, columns) * real.to(mask.dtype)


def pool_attention_mask(mask: torch.Tensor, plan: PoolPlan, columns: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Who of the pooled tokens may attend to whom.

    Args:
        mask: Of the tokens, [B or 1, H, T, K]: bool (True: may attend) or what is added to scores.
        plan: How the T query tokens are pooled.
        columns: Key token that stands for each pooled key, [B, Q]; the last P are the plan's own.
        real: Which pooled keys are not padding, [B, Q].

    Returns:
        [B, H, P, Q], of the dtype of `mask`; padding attends to itself alone.
    """
    num_queries, num_keys = plan.last.shape[1], columns.shape[1]
    never, always = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    rows = mask.expand(plan.last.shape[0], -1, -1, -1).take_along_dim(plan.last[:, None, :, None], 2)
    pooled = rows.take_along_dim(columns[:, None, None, :], 3)
    pooled = pooled.masked_fill(~real[:, None, None, :], never)
    place = torch.arange(num_keys, device=mask.device) - (num_keys - num_queries)
    own = place == torch.arange(num_queries, device=mask.device)[:, None]
    alone = torch.full_like(pooled, never).masked_fill(own, always)
    return torch.where(plan.real[:, None, :, None], pooled, alone)
