"""Configuration of the main job: a YAML file read into frozen dataclasses."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vlmpress.cli import UserError

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class DataConfig:
    """Where questions and images come from.

    Without `file` the project draws shapes and asks about them.
    """

    name: str = "shapes"
    file: Path | None = None
    images: Path | None = None
    num_train_images: int = 3000
    num_test_images: int = 500
    max_eval_questions: int = 1000

    def __post_init__(self) -> None:
        """Refuses sizes nothing can be learned from."""
        if min(self.num_train_images, self.num_test_images, self.max_eval_questions) < 1:
            raise ValueError("expected at least one training image, test image and evaluation question")


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class TowerStep:
    """Pretraining of the vision tower."""

    num_steps: int = 1500
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class TrainStep:
    """One training run on Hugging Face `Trainer` through stagetrain."""

    num_steps: int
    learning_rate: float
    scheme: str = "plain"
    lr_schedule: Literal["cosine", "warmup_stable_decay", "constant"] = "cosine"
    num_layers: int = 2
    images_per_step: int = 16


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class DistillStep:
    """The three steps of VLsI."""

    num_verbalization_steps: int = 100
    num_interaction_steps: int = 900
    num_sft_steps: int = 300
    verbalization_learning_rate: float = 1e-3
    interaction_learning_rate: float = 3e-3
    sft_learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class ReductionStep:
    """DFMR: what share of the visual tokens stays, and the training under the policy.

    Attributes:
        token_share: Mean share of the visual tokens that stays; tau is calibrated for it.
        tau: The threshold itself, in token_share's place.
        factors: Pooling factors to choose from.
        num_calibration_images: Training images that tau is calibrated on.
        num_steps: Of training under the policy.
        learning_rate: At its peak.
    """

    token_share: float = 0.5
    tau: Annotated[float, Field(gt=0)] | None = None
    factors: tuple[int, ...] = (1, 2, 3)
    num_calibration_images: int = 256
    num_steps: int = 200
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class EdgeStep:
    """The edge model: its compressor, fusion and two training stages."""

    num_compressed_tokens: int = 16
    fusion: Literal["none", "cross", "decoder", "combined"] = "combined"
    num_steps: int = 500
    connector_share: float = 0.25
    learning_rate: float = 2e-3
    full_learning_rate_scale: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class PackBlock:
    """Some channels of a matrix in AGQ, the most important ones first, and what shares one scale among them.

    Attributes:
        share: Part of all channels.
        group_size: Over 0: each run of so many weights inside a channel has a scale.
        num_channels: Without group_size: so many whole channels share a scale; 0: all of the block do.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    group_size: Annotated[int, Field(ge=0)] = 0
    num_channels: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class PackStep:
    """How quantpack packs the edge model.

    Attributes:
        bits: Of one code.
        granularity: What shares one scale; for "agq", what `blocks` says.
        group_size: Weights in one group, for "group"; of the fine block in a search.
        num_rows: Channels that share a scale, for "rows".
        blocks: For "agq"; empty: quantpack's default blocks.
        axis: What a channel is: an output (row) or an input (column); None: rows, in a search what suits a part.
        symmetric: No zero points.
        method: How codes are found.
        rounding: "gptq": with error feedback, for the methods rtn, gptq and ecm, and for what a search keeps.
        alpha: For ecm: weights are scaled by max|X|^alpha.
        embeddings: "int4": token embeddings and output head too.
        num_calibration_questions: Training questions to calibrate on; 0: no calibration.
        max_accuracy_drop: Over 0: ECM's search, while each part costs no more answer accuracy than this; it chooses
            what shares a scale and how, and keeps embeddings.
        num_search_questions: Training questions that a search measures accuracy on.
    """

    bits: Literal[2, 3, 4] = 4
    granularity: Literal["tensor", "channel", "group", "rows", "agq"] = "group"
    group_size: Annotated[int, Field(ge=1)] = 128
    num_rows: Annotated[int, Field(ge=1)] = 2
    blocks: tuple[PackBlock, ...] = ()
    axis: Literal["out", "in"] | None = None
    symmetric: bool = False
    method: Literal["rtn", "gptq", "awq", "smoothquant", "mbq", "ecm"] = "rtn"
    rounding: Literal["nearest", "gptq"] = "nearest"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.0
    embeddings: Literal["keep", "int4"] = "keep"
    num_calibration_questions: Annotated[int, Field(ge=0)] = 0
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] = 0.0
    num_search_questions: Annotated[int, Field(ge=1)] = 500

    def __post_init__(self) -> None:
        """Refuses settings that do not go together, ten minutes before they would be used."""
        if self.alpha and self.method != "ecm":
            raise ValueError(f"expected alpha with method ecm only, got method {self.method}")
        if self.rounding == "gptq" and self.method not in ("rtn", "gptq", "ecm"):
            raise ValueError(f"expected rounding gptq with method rtn, gptq or ecm only, got method {self.method}")
        if self.blocks and self.granularity != "agq":
            raise ValueError(f"expected blocks with granularity agq only, got granularity {self.granularity}")
        if self.blocks and abs(sum(block.share for block in self.blocks) - 1) > 1e-6:
            raise ValueError(f"expected shares of blocks that add up to 1, got {[b.share for b in self.blocks]}")
        chosen = (self.method, self.granularity, self.symmetric, self.embeddings)
        if self.max_accuracy_drop and chosen != ("rtn", "group", False, "keep"):
            raise ValueError(
                "expected max_accuracy_drop without method, granularity, symmetric and embeddings: the search chooses"
            )
        if self.needs_calibration and not self.num_calibration_questions:
            raise ValueError("expected num_calibration_questions over 0 for this method or search, got 0")

    @property
    def needs_calibration(self) -> bool:
        """True where quantpack cannot do without activations."""
        method = self.method not in ("rtn", "ecm") or self.alpha > 0
        return method or self.rounding == "gptq" or self.max_accuracy_drop > 0


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class EvaluationStep:
    """How every variant is evaluated.

    Attributes:
        shard_questions: Questions that one worker answers at a time.
        max_new_tokens: Longest answer.
        cpus_per_worker: Cores of a worker on Ray.
        gpus_per_worker: GPUs of a worker on Ray, or a share of one.
    """

    shard_questions: Annotated[int, Field(ge=1)] = 125
    max_new_tokens: Annotated[int, Field(ge=1)] = 16
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)
class RunConfig:
    """Everything a run depends on.

    Attributes:
        out: Folder of the report and the artifact store.
        seed: Fixes data, weights and batches.
        runner: "ray", "local", or "auto": Ray when it is installed.
    """

    out: Path = Path("build/demo")
    seed: int = 0
    runner: Literal["auto", "ray", "local"] = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    tower: TowerStep = field(default_factory=TowerStep)
    teacher: TrainStep = field(
        default_factory=lambda: TrainStep(num_layers=4, num_steps=2200, learning_rate=2e-3, scheme="three_stage_deeper")
    )
    student_sft: TrainStep = field(default_factory=lambda: TrainStep(num_steps=700, learning_rate=3e-3))
    distill: DistillStep = field(default_factory=DistillStep)
    reduction: ReductionStep = field(default_factory=ReductionStep)
    edge: EdgeStep = field(default_factory=EdgeStep)
    pack: PackStep = field(default_factory=PackStep)
    evaluation: EvaluationStep = field(default_factory=EvaluationStep)


_ADAPTER = TypeAdapter(RunConfig)


def read_config(path: Path) -> RunConfig:
    """Reads a YAML file; fields it leaves out keep their defaults, paths are relative to the current folder.

    Raises:
        UserError: Names the file, the field, what was expected and what came.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a readable YAML file, got {error}") from error
    return parse_config(text, str(path))


def parse_config(text: str, place: str) -> RunConfig:
    """As `read_config`, from text; `place` names it in errors."""
    try:
        fields: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{place}: expected YAML, got {error}") from error
    return config_of({} if fields is None else fields, place)


def config_of(fields: Any, place: str) -> RunConfig:
    """As `read_config`, from mappings; `place` names them in errors."""
    try:
        return _ADAPTER.validate_python(_merged(_ADAPTER.dump_python(RunConfig()), fields))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise UserError(f"{place}: {where}: {first['msg']}, got {first['input']!r}") from error


def _merged(base: Any, given: Any) -> Any:
    """`given` over `base`, mapping by mapping; what does not fit is left for the check to name."""
    if not isinstance(base, dict) or not isinstance(given, dict):
        return given
    return {**base, **{name: _merged(base.get(name), value) for name, value in given.items()}}
