"""Configuration of a distillation."""

import math
from dataclasses import dataclass, fields

from verbdistill.errors import ConfigError
from verbdistill.matching.strategies import STRATEGIES

PHASES = ("verbalization_teacher", "verbalization_student", "interaction", "sft")
"""In the order they run; what progress, losses and checkpoints are called after."""

INTERMEDIATE = ("kl", "ce", "l2", "l2_features", "l2_hidden", "none")
LAST = ("kl", "ce", "l2", "none")
ALIGNMENTS = ("none", "shared_words", "sorted")
BODIES = ("verb_ffn", "mlp", "ffn", "decoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How the three VLsI steps run; learning rates and LoRA rank default to the paper's (Section 4.1c).

    Attributes:
        num_verbalization_steps: Optimizer steps that train the verbalizers of each model.
        num_interaction_steps: Optimizer steps that train the student on what the teacher says.
        num_sft_steps: Optimizer steps that train the student on the labels.
        verbalization_lr: Peak learning rate of the first.
        interaction_lr: Peak learning rate of the second.
        sft_lr: Peak learning rate of the third.
        min_lr_ratio: Where the cosine ends, as a share of the peak.
        num_warmup_steps: Linear warmup at the start of each of the three; at most half of it is used.
        betas: Of AdamW.
        weight_decay: Of AdamW, on matrices only.
        max_grad_norm: Gradients are clipped to it: each verbalizer alone, the student as one.
        accumulation_steps: Micro-batches of an optimizer step in each process. Above 1, interaction runs the student
            forward twice: the match is drawn for the whole step, before any of its gradients.
        gradient_checkpointing: Whether the student's layers are computed again in backward instead of kept.
        mixed_precision: Whether forward passes of the student, and of the teacher while its verbalizers train, are in
            bfloat16. Parameters, optimizer and losses stay as they are.
        save_steps: Optimizer steps between two checkpoints inside a phase; None keeps finished phases only.
        logits_bytes: Memory for everything with a vocabulary axis.
        verbalizer: Body of a verbalizer: "verb_ffn", "mlp", "ffn" or "decoder" (Table 4f).
        verbalizer_depth: 1 or 2 of them.
        strategy: Of the match: one of `STRATEGIES` (Table 4e).
        temperature_scale: Scale of the adaptive temperature of the match.
        intermediate: What interaction compares at the targets (Table 4d): "kl", "l2" of logits, "ce" of the labels
            without the teacher; without the head "l2_features" of verb-FFNs that train in interaction, or
            "l2_hidden" of the layers' own states; or "none".
        last: What it compares at the last layer: "kl", "l2" of logits, "ce" of the labels, or "none".
        alignment: How two vocabularies are compared: "none" where they are one, else, experimental, "shared_words" or
            "sorted" probabilities.
        lora_rank: Rank and alpha of LoRA on the student's LLM in interaction, merged at its end; the projector
            trains beside it. None trains projector and LLM in full.
        train_vision_tower: Whether the student's vision tower trains in interaction and SFT.
        student_targets: 1-based student layers; None takes `default_targets`.
        teacher_targets: The same for the teacher; at least as many.
        seed: Of verbalizers, LoRA, dropout and the match.
    """

    num_verbalization_steps: int
    num_interaction_steps: int
    num_sft_steps: int
    verbalization_lr: float = 1e-4
    interaction_lr: float = 1e-4
    sft_lr: float = 1e-4
    min_lr_ratio: float = 0.01
    num_warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: bool = False
    save_steps: int | None = None
    logits_bytes: int = 256 * 2**20
    verbalizer: str = "verb_ffn"
    verbalizer_depth: int = 1
    strategy: str = "vlsi"
    temperature_scale: float = 2.0
    intermediate: str = "kl"
    last: str = "kl"
    alignment: str = "none"
    lora_rank: int | None = 64
    train_vision_tower: bool = False
    student_targets: tuple[int, ...] | None = None
    teacher_targets: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            # YAML and JSON give lists.
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
        self._check_numbers()
        self._check_choices()

    @property
    def phase_steps(self) -> dict[str, int]:
        """Optimizer steps of each of `PHASES`; without verbalizers to train there is no verbalization."""
        verbalization = self.num_verbalization_steps
        return {
            "verbalization_teacher": verbalization if self.intermediate in ("kl", "l2") else 0,
            "verbalization_student": verbalization if self.intermediate in ("kl", "l2", "ce") else 0,
            "interaction": self.num_interaction_steps,
            "sft": self.num_sft_steps,
        }

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that a run asks for in each process; both models' verbalizers train on the same ones."""
        steps = self.num_verbalization_steps + self.num_interaction_steps + self.num_sft_steps
        return steps * self.accumulation_steps

    def overall(self, phase: str, done: int) -> tuple[int, int]:
        """(steps done over all phases, their number) after `done` steps of `phase`."""
        steps = self.phase_steps
        before = sum(steps[name] for name in PHASES[: PHASES.index(phase)])
        return before + done, sum(steps.values())

    def _check_numbers(self) -> None:
        for name in ("num_verbalization_steps", "num_interaction_steps", "num_sft_steps", "num_warmup_steps", "seed"):
            _whole(name, getattr(self, name), 0)
        for name in ("accumulation_steps", "logits_bytes"):
            _whole(name, getattr(self, name), 1)
        for name in ("lora_rank", "save_steps"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 1)
        for name in ("verbalization_lr", "interaction_lr", "sft_lr", "max_grad_norm", "temperature_scale"):
            _number(name, getattr(self, name), 0, math.inf, above=True)
        _number("weight_decay", self.weight_decay, 0, math.inf)
        _number("min_lr_ratio", self.min_lr_ratio, 0, 1)
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ConfigError(f"betas: expected two numbers, got {self.betas!r}")
        for beta in self.betas:
            _number("betas", beta, 0, 0.999999)

    def _check_choices(self) -> None:
        for name, choices in {
            "strategy": STRATEGIES,
            "intermediate": INTERMEDIATE,
            "last": LAST,
            "alignment": ALIGNMENTS,
            "verbalizer": BODIES,
            "verbalizer_depth": (1, 2),
        }.items():
            value = getattr(self, name)
            if isinstance(value, bool) or value not in choices:
                raise ConfigError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")
        for name in ("train_vision_tower", "gradient_checkpointing", "mixed_precision"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        for name in ("student_targets", "teacher_targets"):
            layers = getattr(self, name)
            if layers is not None and not (isinstance(layers, tuple) and all(type(layer) is int for layer in layers)):
                raise ConfigError(f"{name}: expected a list of layers, got {layers!r}")
        if self.num_interaction_steps and self.intermediate == self.last == "none":
            raise ConfigError("last: expected something to learn in interaction, got none beside intermediate none")
        if self.alignment != "none" and {"l2", "l2_features", "l2_hidden"} & {self.intermediate, self.last}:
            raise ConfigError(f"alignment: expected none beside an l2 loss, got {self.alignment!r}")


def _whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def _number(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type, operator]
        raise ConfigError(f"{name}: expected a number within {least}..{most}, got {value!r}")
    if above and value == least:
        raise ConfigError(f"{name}: expected a number above {least}, got {value!r}")
