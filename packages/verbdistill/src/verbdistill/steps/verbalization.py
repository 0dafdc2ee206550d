"""The first step of VLsI: verbalizers learn to say the answer from their layer's states (Section 3.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches, PairBatch
from verbdistill.errors import ConfigError
from verbdistill.loop.checkpointing import Checkpoints, fingerprint, owned_parameters, restore_parameters
from verbdistill.loop.precision import forward_precision
from verbdistill.loop.ranks import from_first
from verbdistill.loop.seeding import own_random_numbers
from verbdistill.loop.training import OnProgress, Outcome, Phase, Place, begin_micro_batch, train
from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.models.parts import decoder_layers
from verbdistill.models.states import response_states
from verbdistill.models.targets import check_targets, default_targets
from verbdistill.teachers.placing import device_of, evaluating, placed
from verbdistill.verbalizers.verbalizers import Verbalizers

ROLES = ("teacher", "student")


def train_verbalizers(
    model: nn.Module,
    batches: Batches,
    config: DistillConfig,
    *,
    role: str,
    layers: Sequence[int] | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Verbalizers, list[list[float]]]:
    """Trains a verbalizer for every target on the labels; the model is only read.

    All targets train in one pass over the frozen model. A verbalizer sees only its own term of the loss and is
    clipped alone, so its weights do not depend on which other targets there are.

    Args:
        model: A vision-language or language model.
        batches: Micro-batches of this process; the first one of the run is index 0, for either model.
        config: Its `num_verbalization_steps`, `verbalization_lr`, `verbalizer` and so on.
        role: "teacher" or "student": which side of a `PairBatch` is the model's, and what progress is called after.
        layers: 1-based targets; None: as the configuration says, else `default_targets`.
        checkpoint_dir: Folder of this phase alone.
        on_progress: Called after every optimizer step, with the mean over targets.

    Returns:
        The frozen verbalizers, and of every step the loss of every target, nats: [steps, targets].

    Raises:
        TargetError: Targets do not fit the model.
        NonFiniteLossError, BatchError, CheckpointError, UnsupportedModelError: As of `distill`.
    """
    if role not in ROLES:
        raise ConfigError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
    phase = f"verbalization_{role}"
    targets = target_layers(model, config, role) if layers is None else layers
    verbalizers = new_verbalizers(model, targets, config, role)
    models = {"model": model, "verbalizers": verbalizers}
    identity = from_first(lambda: fingerprint(phase, config, models) if checkpoint_dir is not None else "")
    checkpoints = Checkpoints(checkpoint_dir, identity)
    kept = checkpoints.finished()
    if kept is not None:
        restore_parameters(owned_parameters(verbalizers), kept.tensors.get(role, {}), f"{kept.where}: {role}")
        losses: list[list[float]] = kept.state["losses"]
    else:
        work = _Speaking(model, verbalizers, batches, config, role)
        with own_random_numbers(device_of(model), config.seed), evaluating(model):
            losses = train(
                _phase(phase, verbalizers, config), work, config, checkpoints, _averaged(on_progress, len(targets))
            ).terms
        checkpoints.finish({role: owned_parameters(verbalizers)}, {"losses": losses})
    return verbalizers.requires_grad_(False), losses


def target_layers(model: nn.Module, config: DistillConfig, role: str) -> tuple[int, ...]:
    """1-based targets of the teacher or the student.

    Raises:
        TargetError: They do not fit the model.
    """
    depth = len(decoder_layers(model))
    given = config.teacher_targets if role == "teacher" else config.student_targets
    return check_targets(default_targets(depth) if given is None else given, depth, role)


def new_verbalizers(
    model: nn.Module, layers: Sequence[int], config: DistillConfig, role: str, **form: Any
) -> Verbalizers:
    """Untrained ones, whose other arguments are `form`; the same seed draws the same."""
    generator = torch.Generator().manual_seed(config.seed * len(ROLES) + ROLES.index(role))
    return Verbalizers(model, layers, config.verbalizer, config.verbalizer_depth, generator, owner=role, **form)


class _Speaking:
    """Loss of every target on the labels."""

    def __init__(
        self, model: nn.Module, verbalizers: Verbalizers, batches: Batches, config: DistillConfig, role: str
    ) -> None:
        self._model = model
        self._verbalizers = verbalizers
        self._batches = batches
        self._config = config
        self._role = role

    def __call__(self, place: Place) -> Outcome:
        rows: list[Tensor] = []
        num_tokens = 0
        for index in place.indices:
            begin_micro_batch(self._config, place, index)
            found = self._batches(index)
            batch = getattr(found, self._role) if isinstance(found, PairBatch) else found
            with torch.no_grad(), forward_precision(self._config, device_of(self._model)):
                states = response_states(
                    self._model,
                    placed(batch, device_of(self._model)),
                    self._verbalizers.layers,
                    whole=self._verbalizers.reads_whole,
                )
            count = len(states.labels)
            losses = [
                ar_loss(features, self._verbalizers.head, states.labels, logits_bytes=self._config.logits_bytes) * count
                for features in self._verbalizers.features(states)
            ]
            torch.stack(losses).sum().backward()
            rows.append(torch.stack(losses).detach().double().cpu())
            num_tokens += count
        return Outcome(sums=torch.stack(rows), num_tokens=num_tokens)


def _phase(name: str, verbalizers: Verbalizers, config: DistillConfig) -> Phase:
    return Phase(
        name=name,
        first_index=0,
        num_steps=config.num_verbalization_steps,
        peak_lr=config.verbalization_lr,
        modules={"verbalizers": verbalizers},
        groups=[list(body.parameters()) for body in verbalizers],
    )


def _averaged(on_progress: OnProgress | None, num_targets: int) -> OnProgress | None:
    if on_progress is None:
        return None
    return lambda phase, done, total, loss: on_progress(phase, done, total, loss / num_targets)
