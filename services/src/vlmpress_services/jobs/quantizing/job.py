"""PackJob and SweepJob: what can be refused before there is a job, and the work itself."""

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.quantpack.v1 import quantpack_pb2
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError
from vlmpress_services.jobs.progress import OnProgress, settings_done, trials_done, weights_done
from vlmpress_services.jobs.requirements import imported
from vlmpress_services.producer import producer
from vlmpress_services.store.incoming import incoming_folder
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import MODEL_KINDS, check_kind

if TYPE_CHECKING:
    from quantpack import EcmSearch, Recipe, Scheme

DEFAULT_NUM_SAMPLES, DEFAULT_NUM_QUESTIONS = 64, 500
MAX_QUESTIONS, MAX_SETTINGS, MAX_NAME_CHARS = 100_000, 256, 64
SWEEP_FIELDS, SWEEP_PICTURE = "sweep.json", "sweep.svg"


def check_pack(job: pb.PackJob, store: ArtifactStore) -> None:
    """Refuses what cannot become a job; the worker refuses recipes that do not exist, for that takes quantpack.

    Raises:
        InvalidRequestError: A field cannot be right, or does not fit the others.
        NotFoundError: The model or the dataset is not in the store.
    """
    check_kind("model", store.find(job.model), *MODEL_KINDS)
    how = job.WhichOneof("how")
    if how is None:
        raise InvalidRequestError("pack: expected scheme, recipe or search, got none")
    if how == "search":
        _check_search(job.search)
    if job.dataset:
        check_kind("dataset", store.find(job.dataset), "dataset")
    elif how == "search":
        raise InvalidRequestError("dataset: expected one beside a search, got an empty string")
    elif job.num_samples:
        raise InvalidRequestError(f"num_samples: expected it beside a dataset only, got {job.num_samples}")
    if job.num_questions and how != "search":
        raise InvalidRequestError(f"num_questions: expected it beside a search only, got {job.num_questions}")
    _check_numbers(job)


def check_sweep(job: pb.SweepJob, store: ArtifactStore) -> None:
    """As `check_pack`."""
    check_kind("model", store.find(job.model), *MODEL_KINDS)
    check_kind("dataset", store.find(job.dataset), "dataset")
    _check_numbers(job)
    if job.HasField("search"):
        _check_search(job.search)
    if len(job.settings) > MAX_SETTINGS:
        raise InvalidRequestError(f"settings: expected at most {MAX_SETTINGS}, got {len(job.settings)}")
    names: set[str] = set()
    for setting in job.settings:
        for name in (setting.name, setting.kind or setting.name):
            if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
                raise InvalidRequestError(
                    f"settings: expected names of 1 to {MAX_NAME_CHARS} printable characters, got {name!r:.80}"
                )
        if setting.name in names:
            raise InvalidRequestError(f"settings: expected each name once, got {setting.name!r} twice")
        names.add(setting.name)


def do_pack(job: pb.PackJob, store: ArtifactStore, on_progress: OnProgress) -> str:
    """Packs; gives the digest of the pack."""
    with imported("pack", "quantpack"):
        from quantpack.wire import ecm_search_from_proto, recipe_from_proto, scheme_from_proto
        from vlmpress_services.jobs.quantizing.work import QuestionSource, pack_artifact
    how: Scheme | Recipe | EcmSearch
    if job.HasField("scheme"):
        how = scheme_from_proto(job.scheme)
    elif job.HasField("recipe"):
        how = recipe_from_proto(job.recipe)
    else:
        how = ecm_search_from_proto(job.search)
        _check_can_draw("search")
    model = store.verify(job.model)
    data = None
    if job.dataset:
        data = QuestionSource(dataset=store.verify(job.dataset), **_numbers(job))
    with incoming_folder(store.root / "incoming") as folder:
        report = trials_done(on_progress) if job.HasField("search") else weights_done(on_progress)
        return store.publish(pack_artifact(model, folder / "artifact", how, data, report)).digest


def do_sweep(job: pb.SweepJob, store: ArtifactStore, on_progress: OnProgress) -> str:
    """Sweeps; gives the digest of the report."""
    with imported("sweep", "quantpack"):
        from quantpack import standard_settings
        from quantpack.wire import ecm_search_from_proto, setting_from_proto
        from vlmpress_services.jobs.quantizing.work import QuestionSource, sweep_artifact
    _check_can_draw("sweep")
    settings = [setting_from_proto(setting) for setting in job.settings] or list(standard_settings())
    search = ecm_search_from_proto(job.search) if job.HasField("search") else None
    model, dataset = store.verify(job.model), store.verify(job.dataset)
    data = QuestionSource(dataset=dataset, **_numbers(job))
    report = settings_done(on_progress, len(settings), has_search=search is not None)
    found = sweep_artifact(model, settings, search, data, report)
    with store.draft() as draft:
        text = json.dumps(found.as_fields(), indent=2, ensure_ascii=False)
        (draft.path / SWEEP_FIELDS).write_text(f"{text}\n", encoding="utf-8")
        (draft.path / SWEEP_PICTURE).write_text(found.svg(), encoding="utf-8")
        return draft.commit(
            artifact_pb2.Report(title="quantpack sweep"),
            producer=producer(),
            parents=[("model", model.digest), ("dataset", dataset.digest)],
            metrics={"full_accuracy": found.full_accuracy},
        ).digest


def _check_search(search: quantpack_pb2.EcmSearch) -> None:
    if not 0 < search.max_accuracy_drop <= 1:
        raise InvalidRequestError(
            f"search: max_accuracy_drop: expected over 0 and at most 1, got {search.max_accuracy_drop}"
        )


def _check_numbers(job: pb.PackJob | pb.SweepJob) -> None:
    for field, value in (("num_samples", job.num_samples), ("num_questions", job.num_questions)):
        if value > MAX_QUESTIONS:
            raise InvalidRequestError(f"{field}: expected at most {MAX_QUESTIONS}, got {value}")


def _numbers(job: pb.PackJob | pb.SweepJob) -> dict[str, int]:
    return {
        "num_samples": job.num_samples or DEFAULT_NUM_SAMPLES,
        "num_questions": job.num_questions or DEFAULT_NUM_QUESTIONS,
    }


def _check_can_draw(work: str) -> None:
    """The picture comes last; what draws it is asked for first."""
    if find_spec("matplotlib") is None:
        raise ExtraMissingError(
            f"{work}: matplotlib not installed; pip install 'vlmpress-services[quantpack]' on the server"
        )
