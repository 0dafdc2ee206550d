"""`verbdistill run`: from directories and a dataset file to a distilled student's directory."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor

from verbdistill.data.collating import RecordBatches
from verbdistill.errors import ConfigError
from verbdistill.loop.training import OnProgress
from verbdistill.models.vocabulary import check_vocabularies
from verbdistill.runs.run_config import RunConfig
from verbdistill.runs.students import save_student
from verbdistill.steps.distilling import distill
from verbdistill.steps.result import DistillResult
from verbdistill.verbalizers.storing import save_verbalizers
from vlmpress.artifact import Artifact, import_model_code, read
from vlmpress.data import load_records


def run(config: RunConfig, on_progress: OnProgress | None = None) -> tuple[Artifact, DistillResult]:
    """Distils as a file says; the student's directory appears whole at the end or not at all.

    Raises:
        ConfigError: A directory is no model, or an output exists already.
        VocabularyMismatchError: The two tokenizers differ.
        DataError: The dataset file is bad.
    """
    for path in (config.out, config.verbalizers_out):
        # Known now, not after hours of training.
        if path is not None and path.exists():
            raise ConfigError(f"{path}: expected a path that does not exist yet")
    records = [record for record in load_records(config.data, config.images) if record.split != "test"]
    teacher, teacher_processor = _model(config.teacher)
    student, processor = _model(config.student)
    check_vocabularies(teacher_processor.tokenizer.get_vocab(), processor.tokenizer.get_vocab())
    batches = RecordBatches(records, processor, batch_size=config.batch_size, seed=config.distill.seed)
    result = distill(
        teacher, student, batches, config.distill, checkpoint_dir=config.checkpoint_dir, on_progress=on_progress
    )
    digests = {"teacher": _digest(config.teacher), "student": _digest(config.student)}
    parents = [(role, digest) for role, digest in digests.items() if digest is not None]
    if config.verbalizers_out is not None:
        for role, verbalizers in {"teacher": result.teacher_verbalizers, "student": result.student_verbalizers}.items():
            if verbalizers is not None:
                own = [parent for parent in parents if parent[0] == role]
                save_verbalizers(verbalizers, config.verbalizers_out / role, own)
    return save_student(student, processor, result, config.distill, config.out, parents), result


def _model(path: Path) -> tuple[Any, Any]:
    import_model_code(path)
    try:
        return AutoModelForImageTextToText.from_pretrained(path), AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: expected a model directory with its processor, got {error}") from error


def _digest(path: Path) -> str | None:
    """Digest of a model directory that is an artifact, else None."""
    return read(path).digest if (path / "manifest.json").exists() else None
