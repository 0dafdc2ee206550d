"""Pretrains a vision tower on what its images show: the answers to open questions about them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from stagetrain import Sample
from vlmpress.data import question_type

_IMAGES_PER_STEP, _WARMUP_STEPS, _LEARNING_RATE = 32, 50, 2e-3
_MOST_SHIFT_PX = 6


def open_answers(samples: Sequence[Sample]) -> torch.Tensor:
    """Which of all answers, yes and no left out, are known of each image; [N, C] 0 or 1."""
    turns = [[turn for record in sample.records for turn in record.turns] for sample in samples]
    known = [{turn.answer.lower() for turn in each if question_type(turn.answer) != "yes/no"} for each in turns]
    names = sorted(set().union(*known))
    return torch.tensor([[float(name in answers) for name in names] for answers in known])


def train_tower(tower: nn.Module, pixels: torch.Tensor, answers: torch.Tensor, num_steps: int, seed: int) -> float:
    """Trains in place so that the mean of an image's patches tells its known answers, each as likely.

    Batches are shifted by a few pixels and half of them mirrored: without that, shapes are learned by heart.

    Args:
        tower: A CLIP vision tower.
        pixels: [N, 3, H, W].
        answers: [N, C] 0 or 1, at least one an image.
        num_steps: Optimizer steps.
        seed: Fixes head and batches.

    Returns:
        Mean loss of the last steps, nats.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = nn.Linear(tower.config.hidden_size, answers.shape[1])
    target = answers / answers.sum(1, keepdim=True)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, num_steps, pct_start=min(0.5, _WARMUP_STEPS / num_steps), cycle_momentum=False
    )
    losses = []
    tower.train()
    for _ in range(num_steps):
        rows = torch.randint(len(pixels), (_IMAGES_PER_STEP,), generator=generator)
        features = tower(_moved(pixels[rows], generator)).last_hidden_state[:, 1:].mean(1)
        loss = F.cross_entropy(head(features), target[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tower.eval()
    return sum(losses[-50:]) / len(losses[-50:])


def _moved(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shift = torch.randint(-_MOST_SHIFT_PX, _MOST_SHIFT_PX + 1, (2,), generator=generator).tolist()
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    return (pixels.flip(-1) if mirrored else pixels).roll(shift, (-2, -1))
