"""Configuration of a distillation."""

import math
from dataclasses import dataclass

from verbdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How the three VLsI steps run; learning rates and LoRA rank default to the paper's (Section 4.1c).

    Attributes:
        num_verbalization_steps: Optimizer steps that train the verbalizers of both models.
        num_interaction_steps: Optimizer steps that train the student on matched KLs.
        num_sft_steps: Optimizer steps that train the student on the labels.
        verbalization_lr: Peak learning rate of the first step.
        interaction_lr: Peak learning rate of the second.
        sft_lr: Peak learning rate of the third.
        min_lr_ratio: Where the cosine ends, as a share of the peak.
        num_warmup_steps: Linear warmup at the start of each of the three; at most half of it is used.
        betas: Of AdamW.
        weight_decay: Of AdamW, on matrices only.
        max_grad_norm: Gradients are clipped to it: each verbalizer alone, the student as one.
        temperature_scale: Scale of the adaptive temperature of the match.
        strategy: Of the match.
        lora_rank: Rank and alpha of LoRA on the student's LLM in interaction, merged at its end; the projector
            trains beside it. None trains projector and LLM in full.
        train_vision_tower: Whether the student's vision tower trains in interaction and SFT.
        student_targets: 1-based student layers; None takes `default_targets`.
        teacher_targets: The same for the teacher; at least as many.
        chunk_size: Tokens whose logits exist at once.
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
    temperature_scale: float = 2.0
    strategy: str = "vlsi"
    lora_rank: int | None = 64
    train_vision_tower: bool = False
    student_targets: tuple[int, ...] | None = None
    teacher_targets: tuple[int, ...] | None = None
    chunk_size: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_verbalization_steps", "num_interaction_steps", "num_sft_steps", "num_warmup_steps", "seed"):
            _whole(name, getattr(self, name), 0)
        _whole("chunk_size", self.chunk_size, 1)
        if self.lora_rank is not None:
            _whole("lora_rank", self.lora_rank, 1)
        for name in ("verbalization_lr", "interaction_lr", "sft_lr", "max_grad_norm", "temperature_scale"):
            _number(name, getattr(self, name), 0, math.inf, above=True)
        _number("weight_decay", self.weight_decay, 0, math.inf)
        _number("min_lr_ratio", self.min_lr_ratio, 0, 1)
        if self.strategy != "vlsi":
            raise ConfigError(f"strategy: expected 'vlsi', got {self.strategy!r}")
        if type(self.train_vision_tower) is not bool:
            raise ConfigError(f"train_vision_tower: expected true or false, got {self.train_vision_tower!r}")
        # YAML and JSON give lists.
        for name in ("betas", "student_targets", "teacher_targets"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ConfigError(f"betas: expected two numbers, got {self.betas!r}")
        for beta in self.betas:
            _number("betas", beta, 0, 0.999999)
        for name in ("student_targets", "teacher_targets"):
            layers = getattr(self, name)
            if layers is not None and not (isinstance(layers, tuple) and all(type(layer) is int for layer in layers)):
                raise ConfigError(f"{name}: expected a list of layers, got {layers!r}")

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all three."""
        return self.num_verbalization_steps + self.num_interaction_steps + self.num_sft_steps


def _whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def _number(name: str, value: object, least: float, most: float, *, above: bool = False) -> None:
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:  # type: ignore[arg-type, operator]
        raise ConfigError(f"{name}: expected a number within {least}..{most}, got {value!r}")
    if above and value == least:
        raise ConfigError(f"{name}: expected a number above {least}, got {value!r}")
