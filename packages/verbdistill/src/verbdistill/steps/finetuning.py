"""The third step of VLsI: the student learns the labels (Section 3.3)."""

from pathlib import Path

import torch
from torch import nn

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches
from verbdistill.loop.checkpointing import Checkpoints, fingerprint, owned_parameters, restore_parameters
from verbdistill.loop.precision import forward_precision
from verbdistill.loop.ranks import from_first
from verbdistill.loop.seeding import own_random_numbers
from verbdistill.loop.trainable import checkpointed, trained_in_full
from verbdistill.loop.training import OnProgress, Outcome, Phase, Place, begin_micro_batch, train
from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.models.parts import head_of
from verbdistill.models.states import response_states
from verbdistill.teachers.placing import as_pair, device_of, placed

SFT = "sft"


def finetune(
    student: nn.Module,
    batches: Batches,
    config: DistillConfig,
    *,
    first_index: int | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> list[float]:
    """Trains the whole student on the labels, in place; the vision tower only if the configuration asks for it.

    Args:
        student: The student.
        batches: Micro-batches of this process.
        config: Its `num_sft_steps`, `sft_lr` and so on.
        first_index: Of the phase's micro-batches; None: behind those of the other phases.
        checkpoint_dir: Folder of this phase alone.
        on_progress: Called after every optimizer step.

    Returns:
        Loss of each step, nats.

    Raises:
        NonFiniteLossError, BatchError, CheckpointError, UnsupportedModelError: As of `distill`.
    """
    if first_index is None:
        first_index = (config.num_verbalization_steps + config.num_interaction_steps) * config.accumulation_steps
    identity = from_first(
        lambda: fingerprint(SFT, config, {"student": student}, first=first_index) if checkpoint_dir else ""
    )
    checkpoints = Checkpoints(checkpoint_dir, identity)
    kept = checkpoints.finished()
    if kept is not None:
        restore_parameters(owned_parameters(student), kept.tensors.get("student", {}), f"{kept.where}: student")
        losses: list[float] = kept.state["losses"]
        return losses
    with (
        own_random_numbers(device_of(student), config.seed),
        trained_in_full(student, with_vision_tower=config.train_vision_tower),
        checkpointed(student, config.gradient_checkpointing),
    ):
        phase = Phase(
            name=SFT,
            first_index=first_index,
            num_steps=config.num_sft_steps,
            peak_lr=config.sft_lr,
            modules={"student": student},
            groups=[list(student.parameters())],
        )
        history = train(phase, _Labels(student, batches, config), config, checkpoints, on_progress)
    losses = [terms[0] for terms in history.terms]
    checkpoints.finish({"student": owned_parameters(student)}, {"losses": losses})
    return losses


class _Labels:
    """The last layer's loss on the labels."""

    def __init__(self, student: nn.Module, batches: Batches, config: DistillConfig) -> None:
        self._student = student
        self._batches = batches
        self._config = config

    def __call__(self, place: Place) -> Outcome:
        rows = []
        num_tokens = 0
        for index in place.indices:
            begin_micro_batch(self._config, place, index)
            batch = placed(as_pair(self._batches(index)).student, device_of(self._student))
            with forward_precision(self._config, device_of(self._student)):
                states = response_states(self._student, batch, ())
            mean = ar_loss(states.last, head_of(self._student), states.labels, logits_bytes=self._config.logits_bytes)
            total = mean * len(states.labels)
            total.backward()
            rows.append(total.detach().double().cpu().view(1))
            num_tokens += len(states.labels)
        return Outcome(sums=torch.stack(rows), num_tokens=num_tokens)
