"""What PackJob, SweepJob and the main job have quantpack do with artifacts; imports quantpack, so import it late."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantpack import EcmSearch, Recipe, Scheme, Setting, Sweep, pack, pack_model, quantize, search_ecm, sweep
from quantpack.accuracy import answer_accuracy
from quantpack.calibration.dataset import Question, as_samples, batches, read_questions
from quantpack.models import open_model
from quantpack.progress import OnProgress
from vlmpress.artifact import Artifact, import_model_code
from vlmpress_services.datasets import IMAGES, RECORDS

BATCH_SIZE = 16
SEARCH_PICTURE = "quantization.svg"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionSource:
    """A dataset to calibrate and to measure on.

    Attributes:
        dataset: The artifact.
        num_samples: Training questions to calibrate on.
        num_questions: Questions to measure accuracy on.
    """

    dataset: Artifact
    num_samples: int
    num_questions: int

    def samples(self, model: Path) -> list[dict[str, Any]]:
        """Calibration samples, as `quantize` takes them, through the processor of a model's directory."""
        return as_samples(self._read(model, "train", self.num_samples))

    def questions(self, model: Path, split: str) -> list[Question]:
        """Questions of "train" or "test" to measure accuracy on, in batches."""
        return self._read(model, split, self.num_questions)

    @property
    def parents(self) -> list[tuple[str, str]]:
        """(role, digest) for a manifest."""
        return [("dataset", self.dataset.digest)]

    def _read(self, model: Path, split: str, number: int) -> list[Question]:
        # A model with code of its own may have a processor of its own.
        import_model_code(model)
        file, images = self.dataset.path / RECORDS, self.dataset.path / IMAGES
        return batches(read_questions(model, file, images, split=split, num_questions=number), BATCH_SIZE)


def pack_artifact(
    model: Artifact,
    out: Path,
    how: Scheme | Recipe | EcmSearch,
    data: QuestionSource | None,
    on_progress: OnProgress | None = None,
) -> Artifact:
    """Packs a model into the directory `out`, one layer in memory at a time where that can be.

    Args:
        model: Its artifact.
        out: Must not exist.
        how: A search measures accuracy on training questions: test questions are for judging the pack.
        data: None: no calibration.
        on_progress: Called after each weight, or after each trial of a search.

    Raises:
        quantpack.QuantpackError: The model, the recipe or the dataset does not fit the others; says which.
        vlmpress.data.DataError: The dataset's records are at fault.
    """
    if isinstance(how, EcmSearch):
        return _pack_searched(model, out, how, data, on_progress)
    if data is None:
        return pack(model.path, out, how, on_progress=on_progress)
    samples = data.samples(model.path)
    if isinstance(how, Scheme) or not any(part.method.needs_gradients for part in how.used_parts):
        return pack(model.path, out, how, samples, on_progress, data.parents)
    loaded = open_model(model.path)
    quantization = quantize(loaded, how, samples, on_progress)
    return pack_model(loaded, quantization, out, like=model.path, parents=data.parents)


def _pack_searched(
    model: Artifact, out: Path, how: EcmSearch, data: QuestionSource | None, on_progress: OnProgress | None
) -> Artifact:
    assert data is not None, "callers ask for it"
    loaded = open_model(model.path)
    questions = data.questions(model.path, "train")
    found = search_ecm(
        loaded, data.samples(model.path), lambda each: answer_accuracy(each, questions), how.parts(), on_progress
    )
    return pack_model(
        loaded,
        found.quantization,
        out,
        like=model.path,
        record={"search": found.as_fields()},
        pictures={SEARCH_PICTURE: found.svg()},
        parents=data.parents,
    )


def sweep_artifact(
    model: Artifact,
    settings: Sequence[Setting],
    search: EcmSearch | None,
    data: QuestionSource,
    on_progress: OnProgress | None = None,
) -> Sweep:
    """Quantizes a model in every way and measures each on test questions.

    Args:
        model: Its artifact.
        settings: The ways.
        search: None: without ECM's search.
        data: To calibrate and to measure on.
        on_progress: Called after each setting, and after each trial of the search.

    Raises:
        quantpack.QuantpackError: The model, a setting or the dataset does not fit the others; says which.
        vlmpress.data.DataError: The dataset's records are at fault.
    """
    return sweep(
        open_model(model.path),
        settings,
        data.samples(model.path),
        data.questions(model.path, "test"),
        search=None if search is None else search.parts(),
        search_questions=None if search is None else data.questions(model.path, "train"),
        on_progress=on_progress,
    )
