"""Pretrains a vision tower: every question that recurs about many images is a task with a linear head of its own."""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from stagetrain import Sample

_IMAGES_PER_STEP, _WARMUP_STEPS, _LEARNING_RATE = 32, 50, 2e-3
_LEAST_SHARE = 0.01
_NOT_ASKED = -100


def question_tasks(samples: Sequence[Sample]) -> torch.Tensor:
    """Which answer each image has to each recurring question, [N, Q] int64; -100 where it was not asked.

    Recurring: asked about at least one in a hundred images. Answers are numbered question by question.
    """
    asked = [
        {turn.question.lower(): turn.answer.lower() for record in sample.records for turn in record.turns}
        for sample in samples
    ]
    counts = Counter(question for pairs in asked for question in pairs)
    common = [question for question, count in sorted(counts.items()) if count >= _LEAST_SHARE * len(asked)]
    answers: dict[str, dict[str, int]] = {question: {} for question in common}
    for pairs in asked:
        for question in pairs.keys() & answers.keys():
            answers[question].setdefault(pairs[question], len(answers[question]))
    rows = [[answers[each][pairs[each]] if each in pairs else _NOT_ASKED for each in common] for pairs in asked]
    return torch.tensor(rows)


def train_tower(tower: nn.Module, pixels: torch.Tensor, answers: torch.Tensor, num_steps: int, seed: int) -> float:
    """Trains in place so that the mean of an image's patches answers the recurring questions.

    Args:
        tower: A CLIP vision tower.
        pixels: [N, 3, H, W].
        answers: [N, Q]; see `question_tasks`.
        num_steps: Optimizer steps.
        seed: Fixes heads and batches.

    Returns:
        Mean loss of the last steps, nats.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    num_answers = answers.amax(0) + 1
    most = int(num_answers.max())
    heads = nn.Linear(tower.config.hidden_size, answers.shape[1] * most)
    none = torch.arange(most) >= num_answers[:, None]
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, num_steps, pct_start=min(0.5, _WARMUP_STEPS / num_steps), cycle_momentum=False
    )
    losses = []
    tower.train()
    for _ in range(num_steps):
        rows = torch.randint(len(pixels), (_IMAGES_PER_STEP,), generator=generator)
        features = tower(pixels[rows]).last_hidden_state[:, 1:].mean(1)
        logits = heads(features).unflatten(-1, (-1, most)).masked_fill(none, -torch.inf)
        loss = F.cross_entropy(logits.flatten(0, 1), answers[rows].flatten(), ignore_index=_NOT_ASKED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tower.eval()
    return sum(losses[-50:]) / len(losses[-50:])
