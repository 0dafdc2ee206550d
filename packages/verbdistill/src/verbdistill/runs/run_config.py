"""The YAML file of `verbdistill run`."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from verbdistill.config import DistillConfig
from verbdistill.errors import ConfigError
from verbdistill.models.presets import PRESETS


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What `verbdistill run` does; paths are relative to the YAML file.

    Attributes:
        teacher: Model directory.
        student: Model directory of the untrained or trained student.
        data: LLaVA JSON/JSONL or VQA JSONL; records of split "test" are left out.
        out: Artifact directory to write: the trained student.
        distill: The three steps.
        images: Folder that image paths are relative to; by default the data file's.
        batch_size: Conversations of a micro-batch, over all processes.
        max_length: Most tokens of a conversation, images included.
        targets: Name of a preset of target layers, one of `PRESETS`, instead of those of `distill`.
        teacher_verbalizers: Directory of the teacher's verbalizers; None trains them.
        verbalizers_out: Folder for the verbalizers of both, `teacher` and `student`; None keeps none.
        checkpoint_dir: Folder of checkpoints; None keeps none.
        answers_dir: Folder that keeps the teacher's answers, truncated to `answers_words`; None asks it anew.
        answers_words: Likeliest words of a token that are kept there.
    """

    teacher: Path
    student: Path
    data: Path
    out: Path
    distill: DistillConfig
    images: Path | None = None
    batch_size: int = 16
    max_length: int | None = None
    targets: str | None = None
    teacher_verbalizers: Path | None = None
    verbalizers_out: Path | None = None
    checkpoint_dir: Path | None = None
    answers_dir: Path | None = None
    answers_words: int = 64

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "answers_words"):
            value = getattr(self, name)
            if not (name == "max_length" and value is None) and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")
        given = (self.distill.student_targets, self.distill.teacher_targets)
        if self.targets is not None and given != (None, None):
            raise ConfigError(f"targets: expected a preset or layers in distill, got {self.targets!r} and layers")
        if self.targets is not None and self.targets not in PRESETS:
            raise ConfigError(f"targets: expected one of {', '.join(PRESETS)}, got {self.targets!r}")


_PATHS = (
    "teacher",
    "student",
    "data",
    "out",
    "images",
    "teacher_verbalizers",
    "verbalizers_out",
    "checkpoint_dir",
    "answers_dir",
)


def read_run_config(file: Path) -> RunConfig:
    """Reads and checks the file.

    Raises:
        ConfigError: Names the file, the key, what was expected and what came.
    """
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file}: expected a readable YAML file, got {' '.join(str(error).split())}") from error
    try:
        values = _checked(RunConfig, value, "")
        values["distill"] = DistillConfig(**_checked(DistillConfig, values["distill"], "distill: "))
        for name in _PATHS:
            if values.get(name) is None:
                continue
            if not isinstance(values[name], str) or not values[name]:
                raise ConfigError(f"{name}: expected a path, got {values[name]!r}")
            values[name] = file.parent / values[name]
        return RunConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _checked(kind: type[Any], value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}expected a mapping, got {type(value).__name__}")
    known = {field.name: field for field in fields(kind)}
    for name in value:
        if name not in known:
            raise ConfigError(f"{where}expected one of {', '.join(known)}, got unknown key {name!r}")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and value.get(name) is None:
            raise ConfigError(f"{where}expected {name}, got none")
    return dict(value)
