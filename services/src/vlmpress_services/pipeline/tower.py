"""Pretrains the vision tower on what the training data asks most often.

One linear head for each common question, over the mean of the patch features, its answers as
classes: attributes learned this way let the language model start from features that mean something.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModel

from vlmpress.data import DataError, Record
from vlmpress_services.pipeline.config import TowerStep

BETAS = (0.9, 0.98)
IMAGES_PER_STEP = 32
WARMUP_STEPS = 50
MAX_QUESTIONS = 256
MIN_IMAGE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class AttributeTask:
    """The common questions as classification tasks over one long row of logits.

    Attributes:
        images: Paths of the labelled images.
        labels: For each image, (task, class within the task) pairs.
        num_classes: Classes of each task.
    """

    images: list[Path]
    labels: list[list[tuple[int, int]]]
    num_classes: list[int]


def attribute_task(records: Sequence[Record]) -> AttributeTask:
    """Labels each image with its answers to the questions asked about at least 1% of the images (256 at most).

    Raises:
        DataError: No question recurs.
    """
    by_image: dict[Path, list[tuple[str, str]]] = defaultdict(list)
    for record in records:
        if record.image is not None:
            by_image[record.image] += [(turn.question.lower(), turn.answer.lower()) for turn in record.turns]
    counts = Counter(question for asked in by_image.values() for question, _ in asked)
    least = max(2, MIN_IMAGE_SHARE * len(by_image))
    common = [question for question, count in counts.most_common(MAX_QUESTIONS) if count >= least]
    if not common:
        raise DataError(
            f"training data: expected questions that recur about different images, for the vision tower to learn from; "
            f"got {len(counts)} questions about {len(by_image)} images, none of them {least:.0f} times"
        )
    answers: dict[str, dict[str, int]] = {question: {} for question in common}
    images, labels = [], []
    for image, asked in by_image.items():
        marks = []
        for question, answer in asked:
            if question in answers:
                classes = answers[question]
                marks.append((common.index(question), classes.setdefault(answer, len(classes))))
        if marks:
            images.append(image)
            labels.append(marks)
    return AttributeTask(images, labels, [len(answers[question]) for question in common])


def pretrain_tower(
    tower: CLIPVisionModel,
    task: AttributeTask,
    pixels: Callable[[Sequence[Path]], torch.Tensor],
    config: TowerStep,
    seed: int,
    on_progress: Callable[[int, int, str], None],
) -> list[float]:
    """Trains the tower in place; gives the loss of each step, nats.

    Args:
        tower: Trained in place.
        task: What to learn.
        pixels: Paths to pixel values [B, 3, H, W].
        config: Steps and rates.
        seed: Fixes heads and batches.
        on_progress: Called with (step, steps, note).
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    heads = nn.Linear(tower.config.hidden_size, sum(task.num_classes))
    starts = torch.tensor([0, *task.num_classes]).cumsum(0).tolist()
    optimizer = torch.optim.AdamW(
        [*tower.parameters(), *heads.parameters()], lr=config.learning_rate, betas=BETAS, weight_decay=0.01
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP_STEPS, total_iters=WARMUP_STEPS)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.num_steps - WARMUP_STEPS))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [WARMUP_STEPS])
    losses = []
    tower.train()
    for step in range(config.num_steps):
        chosen = torch.randint(len(task.images), (IMAGES_PER_STEP,), generator=generator).tolist()
        features = tower(pixels([task.images[i] for i in chosen]), output_hidden_states=True).hidden_states[-1]
        logits = heads(features[:, 1:].mean(1))
        loss = _masked_loss(logits, [task.labels[i] for i in chosen], starts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        on_progress(step + 1, config.num_steps, f"loss {losses[-1]:.3f}")
    tower.eval()
    return losses


def _masked_loss(logits: torch.Tensor, labels: Sequence[list[tuple[int, int]]], starts: list[int]) -> torch.Tensor:
    """Mean cross entropy over the questions that were asked; logits [B, sum of classes]."""
    rows, targets, masks = [], [], []
    for row, marks in enumerate(labels):
        for task, target in marks:
            rows.append(row)
            targets.append(starts[task] + target)
            masks.append((starts[task], starts[task + 1]))
    picked = logits[rows]
    columns = torch.arange(logits.shape[1])
    bounds = torch.tensor(masks)
    inside = (columns >= bounds[:, :1]) & (columns < bounds[:, 1:])
    return F.cross_entropy(picked.masked_fill(~inside, float("-inf")), torch.tensor(targets))
