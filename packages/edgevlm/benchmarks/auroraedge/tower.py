"""Pretrains vision tower and projector: a patch (or the mean of an image's) becomes the sum of the words for it.

What SigLIP and LLaVA's first stage give real models: features that tell objects apart, near the words for them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from auroraedge.questions import GRID, Questions, as_pixel_values
from auroraedge.recipe import Recipe
from torch import Tensor, nn

_IMAGES_PER_STEP, _WARMUP_STEPS = 32, 50
_MOST_SHIFT_PX = 6


def train_tower(model: Any, ids: dict[str, int], questions: Questions, recipe: Recipe, seed: int) -> float:
    """Trains in place; the share of labels that were right at the end."""
    generator = torch.Generator().manual_seed(seed)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    words = {group: _vectors(model, ids, names) for group, names in questions.words.items()}
    parameters = [*tower.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.tower_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.tower_rate, recipe.tower_steps, pct_start=min(0.5, _WARMUP_STEPS / recipe.tower_steps)
    )
    pixels, right = as_pixel_values(questions.train.pixels), []
    of_patches = next(iter(questions.train.labels.values())).shape[1] == GRID * GRID
    for step in range(recipe.tower_steps):
        rows = torch.randint(len(pixels), (_IMAGES_PER_STEP,), generator=generator)
        images = pixels[rows] if of_patches else _moved(pixels[rows], generator)
        tokens = projector(tower(images).last_hidden_state[:, 1:])
        tokens = tokens if of_patches else tokens.mean(1, keepdim=True)
        losses, hits, wanted = [], [], torch.zeros_like(tokens)
        for group, vectors in words.items():
            labels = questions.train.labels[group][rows]
            logits = tokens @ vectors.T
            losses.append(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1))
            wanted = wanted + vectors[labels.clamp(min=0)] * (labels >= 0)[..., None]
            hits.append((logits.argmax(-1) == labels)[labels >= 0].float().mean())
        optimizer.zero_grad()
        (torch.stack(losses).sum() + (tokens - wanted).square().mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= recipe.tower_steps - 20:
            right.append(float(torch.stack(hits).mean()))
    return sum(right) / len(right)


@torch.no_grad()
def encode(model: Any, pixels: Tensor) -> Tensor:
    """Features of all patches of all images, [N, P, D]."""
    tower = model.model.vision_tower.eval()
    return torch.cat([tower(part).last_hidden_state[:, 1:] for part in pixels.split(100)])


def _vectors(model: Any, ids: dict[str, int], names: tuple[str, ...]) -> Tensor:
    return model.get_input_embeddings().weight.detach()[[ids[name] for name in names]]


def _moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by a few pixels and half of the time mirrored: else shapes are learned by heart."""
    shift = torch.randint(-_MOST_SHIFT_PX, _MOST_SHIFT_PX + 1, (2,), generator=generator).tolist()
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    return (pixels.flip(-1) if mirrored else pixels).roll(shift, (-2, -1))
