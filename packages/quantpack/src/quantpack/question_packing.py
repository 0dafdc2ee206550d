"""What packs and sweeps do with a dataset file: calibrate on it, and measure accuracy on it."""

from collections.abc import Sequence
from pathlib import Path

from quantpack.accuracy import answer_accuracy
from quantpack.calibration.dataset import QuestionFile
from quantpack.errors import OutputExistsError
from quantpack.models import open_model
from quantpack.packing import pack, pack_model
from quantpack.progress import OnProgress
from quantpack.quantizing import quantize
from quantpack.recipe import Recipe, as_recipe
from quantpack.scheme import Scheme
from quantpack.search.drawing import check_can_draw
from quantpack.search.ecm import search_ecm
from quantpack.search.ecm_result import EcmResult
from quantpack.search.options import EcmSearch
from quantpack.sweeping import Setting, Sweep, sweep
from vlmpress.artifact import Artifact

SEARCH_PICTURE = "quantization.svg"


def pack_on_questions(
    src: Path,
    out: Path,
    scheme: Scheme | Recipe,
    data: QuestionFile | None,
    on_progress: OnProgress | None = None,
    parents: Sequence[tuple[str, str]] = (),
) -> Artifact:
    """`pack`, calibrated on training questions; in memory where a method takes gradients, else layer by layer.

    Args:
        src: As for `pack`.
        out: Must not exist.
        scheme: As for `pack`.
        data: None: no calibration.
        on_progress: Called after each weight.
        parents: As for `pack`.

    Raises:
        As `pack`; vlmpress.data.DataError: The file is no dataset.
    """
    recipe = as_recipe(scheme)
    samples = None if data is None else data.samples(src)
    if samples is None or not any(part.method.needs_gradients for part in recipe.used_parts):
        return pack(src, out, recipe, samples, on_progress, parents)
    model = open_model(src)
    return pack_model(model, quantize(model, recipe, samples, on_progress), out, like=src, parents=parents)


def pack_searched(
    src: Path,
    out: Path,
    search: EcmSearch,
    data: QuestionFile,
    on_progress: OnProgress | None = None,
    parents: Sequence[tuple[str, str]] = (),
) -> tuple[Artifact, EcmResult]:
    """ECM's search on a model's directory; the pack keeps what was tried, drawn as well.

    The floor is held on training questions: test questions are for judging the pack.

    Args:
        src: A model directory.
        out: Must not exist.
        search: What may be done.
        data: To calibrate and to measure on.
        on_progress: Called after each trial.
        parents: As for `pack`.

    Raises:
        OutputExistsError: `out` exists.
        MissingExtraError: Nothing here can draw.
        SearchError: As `search_ecm`.
        CalibrationError: The questions do not fit the model.
        SourceError: `src` is no model directory.
        vlmpress.data.DataError: The file is no dataset.
    """
    if out.exists():
        raise OutputExistsError(f"{out}: expected a path that does not exist yet")
    check_can_draw()
    model = open_model(src)
    questions = data.questions(src, "train")
    found = search_ecm(
        model, data.samples(src), lambda each: answer_accuracy(each, questions), search.parts(), on_progress
    )
    made = pack_model(
        model,
        found.quantization,
        out,
        like=src,
        record={"search": found.as_fields()},
        pictures={SEARCH_PICTURE: found.svg()},
        parents=parents,
    )
    return made, found


def sweep_on_questions(
    model_dir: Path,
    settings: Sequence[Setting],
    search: EcmSearch | None,
    data: QuestionFile,
    on_progress: OnProgress | None = None,
) -> Sweep:
    """`sweep` of a model's directory, every point measured on test questions.

    Args:
        model_dir: The model.
        settings: What to try.
        search: None: without ECM's search, which sees training questions only.
        data: To calibrate and to measure on.
        on_progress: As for `sweep`.

    Raises:
        As `sweep`; SourceError: `model_dir` is no model directory; vlmpress.data.DataError: The file is no dataset.
    """
    check_can_draw()
    return sweep(
        open_model(model_dir),
        settings,
        data.samples(model_dir),
        data.questions(model_dir, "test"),
        search=None if search is None else search.parts(),
        search_questions=None if search is None else data.questions(model_dir, "train"),
        on_progress=on_progress,
    )
