"""The vision tower, trained to say what lies under each patch, and then its features, cached."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from vlm.data import COLOURS, SHAPES, Split
from vlm.model import as_pixel_values

from tokenreduce.families.llava import LlavaFamily
from tokenreduce.reducing import VisualGrid

_BATCH, _LR = 32, 4e-3
_NUM_PAIRS = len(COLOURS) * len(SHAPES)


def train_tower(model: LlavaForConditionalGeneration, train: Split, seed: int, num_steps: int) -> float:
    """Trains the tower; returns the share of covered patches whose colour and shape were both right at the end.

    Every patch says which colour and which shape covers it, two labels, so that what belongs to what is not written
    into one patch's feature; CLS says which pairs are in the image, so that its attention means something.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(1000 + seed)
    heads = nn.Linear(64, len(COLOURS) + len(SHAPES) + 2)
    pair_head = nn.Linear(64, _NUM_PAIRS)
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *heads.parameters(), *pair_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=num_steps, pct_start=0.06)
    pixels, patches = torch.from_numpy(train.pixels), torch.from_numpy(train.patches)
    right = []
    for step in range(num_steps):
        rows = torch.randint(len(pixels), (_BATCH,), generator=generator)
        states = tower(as_pixel_values(pixels[rows]), output_hidden_states=True).hidden_states[-1]
        labels = patches[rows].flatten(1)
        loss, both = _patch_loss(heads(states[:, 1:]), labels)
        pairs = F.one_hot(labels, _NUM_PAIRS + 1).amax(dim=1)[:, 1:].float()
        loss = loss + F.binary_cross_entropy_with_logits(pair_head(states[:, 0]), pairs)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= num_steps - 20:
            right.append(float(both[labels > 0].float().mean()))
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    return float(np.mean(right))


def _patch_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of colour plus shape, and where both are right; logits [B, P, 10], labels [B, P] as in Split."""
    colour_logits, shape_logits = logits.split([len(COLOURS) + 1, len(SHAPES) + 1], dim=-1)
    colours = torch.where(labels > 0, (labels - 1) // len(SHAPES) + 1, 0)
    shapes = torch.where(labels > 0, (labels - 1) % len(SHAPES) + 1, 0)
    loss = F.cross_entropy(colour_logits.flatten(0, 1), colours.flatten()) + F.cross_entropy(
        shape_logits.flatten(0, 1), shapes.flatten()
    )
    return loss, (colour_logits.argmax(-1) == colours) & (shape_logits.argmax(-1) == shapes)


@torch.no_grad()
def encode(model: LlavaForConditionalGeneration, split: Split, pixel_factor: int = 1) -> tuple[Tensor, Tensor]:
    """What `attach` sees of all images: features [N, H, W, 64] and attention received [N, H, W]."""
    parts = torch.from_numpy(split.pixels).split(100)
    family = LlavaFamily()
    grids = [
        grid
        for part in parts
        for grid in family.encode(
            model, {"pixel_values": as_pixel_values(part)}, needs_attention=True, pixel_factor=pixel_factor
        ).grids
    ]
    return torch.stack([grid.features for grid in grids]), torch.stack([_seen(grid) for grid in grids])


def _seen(grid: VisualGrid) -> Tensor:
    assert grid.attention is not None  # asked for above.
    return grid.attention
