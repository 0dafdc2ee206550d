"""The three steps of VLsI as loops over batches keyed on the global step (Section 3)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.loop.optimizing import Updater, check_finite
from verbdistill.loop.trainable import trained_in_full, trained_with_lora
from verbdistill.losses.losses import ar_loss, kl_loss, kl_matrix, shared_words
from verbdistill.matching.matching import match_layers
from verbdistill.models.parts import language_head, vocab_size
from verbdistill.models.states import ResponseStates, response_states
from verbdistill.verbalizers.bodies import Body
from verbdistill.verbalizers.verbalizers import Verbalizers

VERBALIZATION, INTERACTION, SFT = "verbalization", "interaction", "sft"

Batches = Callable[[int], Mapping[str, Tensor]]
"""The universal batch of a global step, 0-based over all three phases."""

OnProgress = Callable[[str, int, int, float], None]
"""Called after each optimizer step: phase, steps done in it, its steps, loss in nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The two models and their verbalizers."""

    teacher: nn.Module
    student: nn.Module
    teacher_verbalizers: Verbalizers
    student_verbalizers: Verbalizers


def run_verbalization(
    pair: Pair, batches: Batches, config: DistillConfig, on_progress: OnProgress
) -> dict[str, list[float]]:
    """Trains every verbalizer on the labels, both backbones frozen (Section 3.1).

    All targets train in one pass. A verb-FFN sees only its own term of the loss and is clipped alone,
    so its weights do not depend on which other targets there are.

    Returns:
        Mean loss over the targets, nats, of each step: "verbalization_teacher" and "verbalization_student".
    """
    num_steps = config.num_verbalization_steps
    sides = ((pair.teacher, pair.teacher_verbalizers), (pair.student, pair.student_verbalizers))
    updater = Updater(
        [body.parameters() for _, verbalizers in sides for body in verbalizers],
        phase=VERBALIZATION,
        first_step=0,
        num_steps=num_steps,
        peak_lr=config.verbalization_lr,
        config=config,
    )
    losses: dict[str, list[float]] = {"verbalization_teacher": [], "verbalization_student": []}
    for step in range(num_steps):
        batch = batches(step)
        sums = []
        for model, verbalizers in sides:
            with torch.no_grad():
                states = response_states(model, batch, verbalizers.layers)
            parts = zip(_heads(verbalizers), states.layers, strict=True)
            terms = [ar_loss(head, part, states.labels, chunk_size=config.chunk_size) for head, part in parts]
            sums.append(torch.stack(terms).sum())
        updater.step(sums[0] + sums[1])
        for values, total, (_, verbalizers) in zip(losses.values(), sums, sides, strict=True):
            values.append(float(total.detach()) / len(verbalizers))
        on_progress(VERBALIZATION, step + 1, num_steps, losses["verbalization_student"][-1])
    return losses


def run_interaction(
    pair: Pair, batches: Batches, config: DistillConfig, on_progress: OnProgress
) -> tuple[dict[str, list[float]], list[list[int]]]:
    """Trains the student on matched KLs and the last layer's KL, verbalizers frozen (Section 3.2, Algorithm 1).

    Returns:
        Losses of each step in nats, "interaction" (all) and "interaction_last" (the last layer's KL), and
        the 0-based teacher target of each student target of each step.
    """
    first_step, num_steps = config.num_verbalization_steps, config.num_interaction_steps
    losses: dict[str, list[float]] = {"interaction": [], "interaction_last": []}
    matches: list[list[int]] = []
    with _adapted(pair.student, config):
        updater = Updater(
            [pair.student.parameters()],
            phase=INTERACTION,
            first_step=first_step,
            num_steps=num_steps,
            peak_lr=config.interaction_lr,
            config=config,
        )
        for step in range(num_steps):
            matched, last, match = interaction_loss(pair, batches(first_step + step), config, first_step + step)
            losses["interaction"].append(updater.step(matched + last))
            losses["interaction_last"].append(float(last.detach()))
            matches.append(match)
            on_progress(INTERACTION, step + 1, num_steps, losses["interaction"][-1])
    return losses, matches


def interaction_loss(
    pair: Pair, batch: Mapping[str, Tensor], config: DistillConfig, step: int
) -> tuple[Tensor, Tensor, list[int]]:
    """(sum of the matched KLs, the last layer's KL, the match) of one batch; nats, with the student's graph."""
    with torch.no_grad():
        teacher = response_states(pair.teacher, batch, pair.teacher_verbalizers.layers)
    student = response_states(pair.student, batch, pair.student_verbalizers.layers)
    num_words = shared_words(vocab_size(pair.teacher), vocab_size(pair.student), student.labels)
    match = _draw_match(pair, teacher, student, num_words, config, step)
    teacher_heads = _heads(pair.teacher_verbalizers)
    terms = [
        kl_loss(
            teacher_heads[drawn],
            teacher.layers[drawn],
            verbalizer,
            states,
            num_words=num_words,
            chunk_size=config.chunk_size,
        )
        for drawn, verbalizer, states in zip(match, _heads(pair.student_verbalizers), student.layers, strict=True)
    ]
    last = kl_loss(
        language_head(pair.teacher),
        teacher.last,
        language_head(pair.student),
        student.last,
        num_words=num_words,
        chunk_size=config.chunk_size,
    )
    return torch.stack(terms).sum(), last, match


def run_sft(
    student: nn.Module, batches: Batches, config: DistillConfig, on_progress: OnProgress
) -> dict[str, list[float]]:
    """Trains the whole student on the labels (Section 3.3); "sft": loss of each step, nats."""
    first_step, num_steps = config.num_verbalization_steps + config.num_interaction_steps, config.num_sft_steps
    losses = []
    with trained_in_full(student, with_vision_tower=config.train_vision_tower):
        updater = Updater(
            [student.parameters()],
            phase=SFT,
            first_step=first_step,
            num_steps=num_steps,
            peak_lr=config.sft_lr,
            config=config,
        )
        for step in range(num_steps):
            states = response_states(student, batches(first_step + step), ())
            loss = ar_loss(language_head(student), states.last, states.labels, chunk_size=config.chunk_size)
            losses.append(updater.step(loss))
            on_progress(SFT, step + 1, num_steps, losses[-1])
    return {"sft": losses}


def _draw_match(
    pair: Pair, teacher: ResponseStates, student: ResponseStates, num_words: int, config: DistillConfig, step: int
) -> list[int]:
    kld = kl_matrix(
        _heads(pair.teacher_verbalizers),
        teacher.layers,
        _heads(pair.student_verbalizers),
        student.layers,
        num_words=num_words,
        chunk_size=config.chunk_size,
    )
    check_finite(float(kld.sum()), INTERACTION, step)
    # Keyed on the step, so that a resumed run draws what an unbroken one would.
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    return match_layers(kld, strategy=config.strategy, scale=config.temperature_scale, generator=generator)


def _adapted(student: nn.Module, config: DistillConfig) -> AbstractContextManager[None]:
    if config.lora_rank is None:
        return trained_in_full(student, with_vision_tower=config.train_vision_tower)
    return trained_with_lora(student, config.lora_rank, with_vision_tower=config.train_vision_tower)


def _heads(verbalizers: Verbalizers) -> list[Callable[[Tensor], Tensor]]:
    """Of every target: logits of its layer's states."""

    def speaking(body: Body) -> Callable[[Tensor], Tensor]:
        return lambda states: verbalizers.head.logits(verbalizers.normed(body(states)))

    return [speaking(body) for body in verbalizers]
