"""The second step of VLsI: the student's layers learn from the teacher's (Section 3.2, Algorithm 1).

t_s, t_l: number of student and teacher targets; N response tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches
from verbdistill.loop.checkpointing import Checkpoints, Saved, fingerprint, owned_parameters, restore_parameters
from verbdistill.loop.ranks import from_first
from verbdistill.loop.seeding import own_random_numbers, seed_of
from verbdistill.loop.trainable import checkpointed, trained_in_full, trained_with_lora
from verbdistill.loop.training import History, OnProgress, Phase, train
from verbdistill.models.targets import check_pair
from verbdistill.steps.meeting import Meeting
from verbdistill.steps.operations import MATCHED
from verbdistill.steps.student_targets import StudentTargets, student_targets
from verbdistill.teachers.placing import device_of
from verbdistill.teachers.teacher import Teacher
from verbdistill.verbalizers.verbalizers import Verbalizers

INTERACTION = "interaction"


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionHistory:
    """Of every interaction step, over all its response tokens.

    Attributes:
        target_losses: Of every student target the mean loss with what it was matched with, [steps, t_s]; nats, or
            the unit of the operation.
        last_losses: The last layer's.
        matches: 0-based teacher targets of every student target; empty where the operation needs no match.
    """

    target_losses: list[list[float]]
    last_losses: list[float]
    matches: list[list[list[int]]]

    @property
    def losses(self) -> list[float]:
        """All terms together, of every step."""
        return [sum(row) + last for row, last in zip(self.target_losses, self.last_losses, strict=True)]


def interact(
    teacher: Teacher,
    student: nn.Module,
    student_verbalizers: Verbalizers | None,
    batches: Batches,
    config: DistillConfig,
    *,
    words: tuple[Tensor, Tensor] | None = None,
    first_index: int | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> InteractionHistory:
    """Trains the student, in place, on what the teacher's targets and its last layer say.

    Every optimizer step draws one match, for all its micro-batches in all processes.

    Args:
        teacher: Asked for one micro-batch after another, in their order.
        student: The student.
        student_verbalizers: Trained ones, for the operations "kl", "l2" and "ce"; None for the others.
        batches: Micro-batches of this process.
        config: Its `num_interaction_steps`, `interaction_lr`, `intermediate`, `last`, `strategy` and so on.
        words: Ids [K] in the teacher's and in the student's numbering of the words they share, for the alignment
            "shared_words"; see `shared_words`.
        first_index: Of the phase's micro-batches; None: behind those of verbalization.
        checkpoint_dir: Folder of this phase alone.
        on_progress: Called after every optimizer step.

    Raises:
        TargetError: The teacher has fewer targets.
        ConfigError: The operation, the alignment and the teacher's answers do not fit each other.
        VerbalizersError: Verbalizers are missing, or given without need.
        NonFiniteLossError, BatchError, VocabularyMismatchError, CheckpointError: As of `distill`.
    """
    if first_index is None:
        first_index = config.num_verbalization_steps * config.accumulation_steps
    targets = student_targets(student, student_verbalizers, config, teacher.head.weight.shape[1])
    if config.intermediate in MATCHED:
        check_pair(student=targets.layers, teacher=teacher.layers)
    checkpoints = Checkpoints(checkpoint_dir, _identity(teacher, student, targets, config, first_index, checkpoint_dir))
    kept = checkpoints.finished()
    if kept is not None:
        return _restored(student, kept)
    work = Meeting(teacher, student, targets, batches, config, words)
    with own_random_numbers(device_of(student), seed_of(config.seed, INTERACTION)), _adapted(student, config):
        own = [parameter for parameter in targets.parameters() if parameter.requires_grad]
        phase = Phase(
            name=INTERACTION,
            first_index=first_index,
            num_steps=config.num_interaction_steps,
            peak_lr=config.interaction_lr,
            modules={"student": student, **({"targets": targets} if own else {})},
            groups=[list(student.parameters()), own],
        )
        history = _told(train(phase, work, config, checkpoints, on_progress))
    state = {"targets": history.target_losses, "last": history.last_losses, "matches": history.matches}
    checkpoints.finish({"student": owned_parameters(student)}, state)
    return history


def _identity(
    teacher: Teacher,
    student: nn.Module,
    targets: StudentTargets,
    config: DistillConfig,
    first_index: int,
    checkpoint_dir: Path | None,
) -> str:
    if checkpoint_dir is None:
        return ""
    models = {"student": student, "targets": targets}
    return from_first(lambda: fingerprint(INTERACTION, config, models, first=first_index, teacher=teacher.fingerprint))


def _restored(student: nn.Module, kept: Saved) -> InteractionHistory:
    restore_parameters(owned_parameters(student), kept.tensors.get("student", {}), f"{kept.where}: student")
    state = kept.state
    return InteractionHistory(target_losses=state["targets"], last_losses=state["last"], matches=state["matches"])


def _told(history: History) -> InteractionHistory:
    return InteractionHistory(
        target_losses=[terms[:-1] for terms in history.terms],
        last_losses=[terms[-1] for terms in history.terms],
        matches=history.matches,
    )


@contextmanager
def _adapted(student: nn.Module, config: DistillConfig) -> Iterator[None]:
    tower = config.train_vision_tower
    how = (
        trained_in_full(student, with_vision_tower=tower)
        if config.lora_rank is None
        else trained_with_lora(student, config.lora_rank, with_vision_tower=tower)
    )
    with how, checkpointed(student, config.gradient_checkpointing):
        yield
