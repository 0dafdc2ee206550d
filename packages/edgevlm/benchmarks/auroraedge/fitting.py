"""Training and testing of edge models on cached features of a frozen tower."""

import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from auroraedge.questions import Split, as_pixel_values
from auroraedge.rows import Rows, answers_right, draw
from torch import Tensor, nn

_WARMUP = 0.03
_BATCH, _RECENT = 50, 50


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """A split whose images are encoded: features [N, P, D] and pixel values [N, 3, H, W]."""

    split: Split
    features: Tensor
    pixel_values: Tensor

    @classmethod
    def of(cls, split: Split, features: Tensor) -> "Encoded":
        """With the split's own pixels."""
        return cls(split=split, features=features, pixel_values=as_pixel_values(split.pixels))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage, which begins with a new optimizer.

    Attributes:
        num_steps: Optimizer steps.
        rate: Peak learning rate.
        trainable: Beginnings of names of parameters.
        shape: Of the rates: "cosine" to 0 after a warmup, or "falling" linearly to 0.
        until: Mean loss of 50 steps that ends the stage early, at rates that stay at the peak after the warmup.
    """

    num_steps: int
    rate: float
    trainable: tuple[str, ...]
    shape: str = "cosine"
    until: float | None = None


class Subject:
    """An edge model that reads images from features made before; `model` is run as it is otherwise."""

    def __init__(self, model: Any, ids: dict[str, int]) -> None:
        self.model = model
        self.rows = Rows(ids, int(model.config.num_compressed_tokens))
        self._found: tuple[Tensor, Tensor] | None = None
        model.model.patch_features = lambda *_: self._found

    def forward(self, encoded: Encoded, index: Tensor, questions: Sequence[Any], with_loss: bool = True) -> Any:
        """The model's output on images of these indices with these questions, and the labels."""
        features = encoded.features[index]
        self._found = features, torch.ones(features.shape[:2], dtype=torch.bool)
        batch = self.rows.batch(questions)
        labels = batch["labels"] if with_loss else batch.pop("labels")
        return self.model(**batch, pixel_values=encoded.pixel_values[index], use_cache=False), labels


def fit(
    subject: Subject, encoded: Encoded, stages: Sequence[Stage], *, images: int, questions: int, seed: int
) -> dict[str, float]:
    """Trains in place, with a new optimizer and a warmup in each stage; what it took and the loss at the end."""
    begin_s, source = time.process_time(), random.Random(f"fit {seed}")
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for stage in stages:
        trained = []
        for name, parameter in subject.model.named_parameters():
            parameter.requires_grad_(name.startswith(stage.trainable) and "vision_tower" not in name)
            trained += [parameter] if parameter.requires_grad else []
        optimizer = torch.optim.AdamW(trained, lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        subject.model.train()
        for step in range(stage.num_steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate * rate_factor(step, stage)
            rows = torch.randint(len(encoded.split), (images,), generator=generator)
            asked = [draw(encoded.split.questions[row], questions, source) for row in rows.tolist()]
            output, _ = subject.forward(encoded, rows, asked)
            optimizer.zero_grad()
            output.loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append(float(output.loss.detach()))
            recent = losses[-min(_RECENT, step + 1) :]
            if stage.until is not None and len(recent) == _RECENT and sum(recent) / _RECENT < stage.until:
                break
    subject.model.eval()
    tail = losses[-max(1, len(losses) // 20) :]
    return {"cpu_s": time.process_time() - begin_s, "steps": len(losses), "loss": sum(tail) / len(tail)}


def rate_factor(step: int, stage: Stage) -> float:
    """Share of the peak rate."""
    if stage.shape == "falling":
        return 1 - step / stage.num_steps
    warmup = max(1, round(_WARMUP * stage.num_steps))
    if step < warmup:
        return (step + 1) / warmup
    if stage.until is not None:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (stage.num_steps - warmup)))


@torch.no_grad()
def accuracy(subject: Subject, encoded: Encoded, number: int | None = None) -> dict[str, float]:
    """Share of questions answered exactly as greedy decoding would, of all and by kind; of the first images."""
    subject.model.eval()
    hits: dict[str, list[bool]] = defaultdict(list)
    for rows in torch.arange(len(encoded.split))[:number].split(_BATCH):
        asked = [encoded.split.questions[row] for row in rows.tolist()]
        output, labels = subject.forward(encoded, rows, asked, with_loss=False)
        for row, right in zip(asked, answers_right(output.logits, labels), strict=True):
            for question, hit in zip(row, right, strict=True):
                hits["all"].append(hit)
                hits[question.kind].append(hit)
    return {kind: sum(each) / len(each) for kind, each in hits.items()}
