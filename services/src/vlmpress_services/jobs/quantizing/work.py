"""What PackJob, SweepJob and the main job have quantpack do with artifacts; imports quantpack, so import it late."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantpack import EcmSearch, Recipe, Scheme, Setting, Sweep
from quantpack.calibration.dataset import QuestionFile
from quantpack.progress import OnProgress
from quantpack.question_packing import pack_on_questions, pack_searched, sweep_on_questions
from vlmpress.artifact import Artifact
from vlmpress_services.datasets import IMAGES, RECORDS


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

    @property
    def file(self) -> QuestionFile:
        """Its records and images."""
        return QuestionFile(
            file=self.dataset.path / RECORDS,
            images=self.dataset.path / IMAGES,
            num_samples=self.num_samples,
            num_questions=self.num_questions,
        )

    @property
    def parents(self) -> list[tuple[str, str]]:
        """(role, digest) for a manifest."""
        return [("dataset", self.dataset.digest)]


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
    file, parents = (None, []) if data is None else (data.file, data.parents)
    if isinstance(how, EcmSearch):
        assert file is not None, "callers ask for it"
        return pack_searched(model.path, out, how, file, on_progress, parents)[0]
    return pack_on_questions(model.path, out, how, file, on_progress, parents)


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
    return sweep_on_questions(model.path, settings, search, data.file, on_progress)
