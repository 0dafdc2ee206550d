"""Whether two models of a store can be a pair, from their configurations and tokenizers alone; import it late."""

from pathlib import Path

from transformers import AutoTokenizer

from verbdistill import check_vocabularies, default_targets
from verbdistill.errors import VerbDistillError
from verbdistill.models.presets import check_depths
from verbdistill.models.targets import check_pair as check_targets_of_pair
from verbdistill.models.targets import check_targets
from verbdistill.runs.run_config import RunConfig
from verbdistill.steps.operations import MATCHED
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.distilling.settings import num_layers


def check_pair(config: RunConfig) -> None:
    """Refuses a pair that training would refuse, before anything is loaded.

    Raises:
        InvalidRequestError: The models, the targets or the tokenizers do not fit each other.
    """
    try:
        depths = [num_layers(path) for path in (config.student, config.teacher)]
        check_depths(*depths)
        given = (config.distill.student_targets, config.distill.teacher_targets)
        student, teacher = (
            check_targets(default_targets(depth) if layers is None else layers, depth, role)
            for role, depth, layers in zip(("student", "teacher"), depths, given, strict=True)
        )
        if config.distill.intermediate in MATCHED:
            check_targets_of_pair(student=student, teacher=teacher)
        if config.distill.alignment == "none":
            check_vocabularies(*(_vocabulary(path) for path in (config.teacher, config.student)))
    except VerbDistillError as error:
        raise InvalidRequestError(f"teacher, student: {error}") from error


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        found: dict[str, int] = AutoTokenizer.from_pretrained(path).get_vocab()
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequestError(f"model: expected a tokenizer beside it, got {error}") from error
    return found
