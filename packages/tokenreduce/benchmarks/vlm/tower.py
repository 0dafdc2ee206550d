"""The vision tower, trained to say what lies under each patch, and then its features, cached."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokenreduce import features_of
from vlm.data import COLOURS, SHAPES, Split
from vlm.model import as_pixel_values

_BATCH, _LR = 32, 2e-3


def train_tower(model: LlavaForConditionalGeneration, train: Split, seed: int, num_steps: int) -> float:
    """Trains the tower on every patch's colour and shape; returns the share of covered patches right in both at the end."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(1000 + seed)
    heads = nn.Linear(64, len(COLOURS) + len(SHAPES) + 2)
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, total_steps=num_steps, pct_start=0.06)
    pixels, patches = torch.from_numpy(train.pixels), torch.from_numpy(train.patches)
    right = []
    for step in range(num_steps):
        rows = torch.randint(len(pixels), (_BATCH,), generator=generator)
        features = features_of(model, as_pixel_values(pixels[rows]))
        labels = patches[rows]
        colour_logits, shape_logits = heads(features).split([len(COLOURS) + 1, len(SHAPES) + 1], dim=-1)
        colours = torch.where(labels > 0, (labels - 1) // len(SHAPES) + 1, 0)
        shapes = torch.where(labels > 0, (labels - 1) % len(SHAPES) + 1, 0)
        loss = F.cross_entropy(colour_logits.flatten(0, 2), colours.flatten()) + F.cross_entropy(
            shape_logits.flatten(0, 2), shapes.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= num_steps - 20:
            both = (colour_logits.argmax(-1) == colours) & (shape_logits.argmax(-1) == shapes)
            right.append(float(both[labels > 0].float().mean()))
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    return float(np.mean(right))


@torch.no_grad()
def encode(model: LlavaForConditionalGeneration, split: Split) -> Tensor:
    """Features of all images, [N, GRID, GRID, 64]."""
    pixels = torch.from_numpy(split.pixels)
    return torch.cat([features_of(model, as_pixel_values(part)) for part in pixels.split(100)])
