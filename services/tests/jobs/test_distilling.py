"""DistillJob in this process: what the worker does, and what is refused before there is a worker."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from verbdistill import VerbDistillError
from verbdistill.seeing.report import read_report
from vlmpress.artifact import Artifact
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError, NotFoundError
from vlmpress_services.jobs.work import check_spec, do_work

SETTINGS = """
batch_size: 2
distill: {num_verbalization_steps: 3, num_interaction_steps: 4, num_sft_steps: 2, lora_rank: 4, save_steps: 2,
          verbalization_lr: 0.01, interaction_lr: 0.01, sft_lr: 0.01}
"""
ROLES = ["teacher", "student", "dataset", "student_verbalizers", "teacher_verbalizers"]


def spec(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(distill=pb.DistillJob(**({"settings_yaml": SETTINGS} | fields)))


class Reports(list[tuple[float, str, Any]]):
    """Keeps every report; ends the run at a step of a phase."""

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        super().__init__()
        self._stop_at = stop_at

    def __call__(self, share: float, note: str, details: Any = None) -> None:
        self.append((share, note, details))
        if details is not None and (details.phase, details.phase_step) == self._stop_at:
            raise InterruptedError

    @property
    def steps(self) -> list[tuple[str, int]]:
        return [(details.phase, details.phase_step) for _, _, details in self if details is not None]


@pytest.fixture(scope="session")
def teacher_directory(tiny_llava_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deeper model with the tokenizer of the tiny Llava, and a vocabulary padded by two words."""
    from transformers import AutoProcessor

    from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_tower

    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(tiny_llava_directory)
    shape = TinyShape(image_px=32, hidden_size=32, language_intermediate_size=48, max_positions=256)
    model = build_llava(build_tower(shape, seed=1), processor, shape, num_layers=4, seed=1)
    model.resize_token_embeddings(len(processor.tokenizer) + 2, mean_resizing=False)
    directory = tmp_path_factory.mktemp("teacher") / "llava"
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture
def add_teacher(store: Any, teacher_directory: Path) -> Callable[[], Artifact]:
    def add() -> Artifact:
        with store.draft() as draft:
            shutil.copytree(teacher_directory, draft.path, dirs_exist_ok=True)
            return draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "0"))  # type: ignore[no-any-return]

    return add


@pytest.fixture
def fields(add_model: Any, add_teacher: Any, add_dataset: Any) -> dict[str, str]:
    made = {"teacher": add_teacher(), "student": add_model(), "dataset": add_dataset()}
    return {field: artifact.digest for field, artifact in made.items()}


def weights(artifact: Artifact, name: str = "model") -> dict[str, torch.Tensor]:
    return load_file(artifact.path / f"{name}.safetensors")


def distillation_of(store: Any, model: Artifact) -> Artifact:
    return store.verify(model.manifest.parents[1].digest)  # type: ignore[no-any-return]


def test_a_student_is_distilled_and_published(store: Any, fields: dict[str, str]) -> None:
    store.tag("big", fields["teacher"])
    job = spec(**(fields | {"teacher": "big"}))
    check_spec(job, store)
    reports = Reports()
    made = store.verify(do_work(job, store, reports))
    student = store.resolve(fields["student"])
    assert made.manifest.kind == "model"
    assert made.manifest.model == student.manifest.model
    assert [parent.role for parent in made.manifest.parents] == ["student", "distillation"]
    before, after = weights(student), weights(made)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    told = distillation_of(store, made)
    assert [parent.role for parent in told.manifest.parents] == ROLES
    assert list(told.manifest.distillation.teacher_layers) == [1, 2, 3, 4]
    assert list(told.manifest.distillation.student_layers) == [1, 2]
    report = read_report(told.path)
    assert {name: len(values) for name, values in report.losses.items()} == {
        "verbalization_teacher": 3,
        "verbalization_student": 3,
        "interaction": 4,
        "interaction_last": 4,
        "sft": 2,
    }
    assert [len(row) for row in report.target_losses["verbalization_teacher"]] == [4] * 3
    assert len(report.matches) == 4
    assert made.manifest.metrics["final_sft_loss"] == pytest.approx(report.losses["sft"][-1])
    assert json.loads((told.path / "distilling.json").read_text(encoding="utf-8"))["teacher"] == "big"
    verbalizers = {parent.role: store.verify(parent.digest) for parent in told.manifest.parents[3:]}
    assert [list(each.manifest.verbalizers.layers) for each in verbalizers.values()] == [[1, 2], [1, 2, 3, 4]]
    assert [each.manifest.parents[0].digest for each in verbalizers.values()] == [fields["student"], fields["teacher"]]
    expected = [("verbalization_teacher", 3), ("verbalization_student", 3), ("interaction", 4), ("sft", 2)]
    assert reports.steps == [(phase, step) for phase, steps in expected for step in range(1, steps + 1)]
    last = reports[-1][2]
    assert (last.step, last.num_steps, last.num_phase_steps, last.seconds_left) == (12, 12, 2, 0)
    assert reports[-1][0] == 1
    assert reports[-1][1].startswith("sft, step 2 of 2, loss ")
    assert not list((store.root / "runs").iterdir())
    assert not list((store.root / "incoming").iterdir())


@pytest.mark.parametrize("stop_at", [("verbalization_teacher", 2), ("verbalization_student", 3), ("interaction", 3)])
def test_a_job_that_was_ended_goes_on_when_it_is_made_again(
    store: Any, fields: dict[str, str], stop_at: tuple[str, int]
) -> None:
    job = spec(**fields)
    unbroken = Reports()
    whole = store.verify(do_work(job, store, unbroken))
    with pytest.raises(InterruptedError):
        do_work(job, store, Reports(stop_at))
    assert len(list((store.root / "runs").iterdir())) == 1
    reports = Reports()
    made = store.verify(do_work(job, store, reports))
    assert reports.steps == unbroken.steps[-len(reports.steps) :]
    # One more may have been lost than was reported: checkpoints come every second step.
    lost = len(unbroken.steps) - len(reports.steps)
    assert unbroken.steps.index(stop_at) - 1 <= lost <= unbroken.steps.index(stop_at) + 1
    assert made.digest == whole.digest
    expected, found = (read_report(distillation_of(store, each).path) for each in (whole, made))
    assert found == expected


def test_verbalizers_of_the_teacher_are_used_again(store: Any, fields: dict[str, str]) -> None:
    first = distillation_of(store, store.verify(do_work(spec(**fields), store, Reports())))
    kept = next(each.digest for each in first.manifest.parents if each.role == "teacher_verbalizers")
    reports = Reports()
    job = spec(**fields, teacher_verbalizers=kept)
    check_spec(job, store)
    told = distillation_of(store, store.verify(do_work(job, store, reports)))
    assert {phase for phase, _ in reports.steps} == {"verbalization_student", "interaction", "sft"}
    assert {each.role: each.digest for each in told.manifest.parents}["teacher_verbalizers"] == kept
    again, before = read_report(told.path), read_report(first.path)
    assert again.losses["interaction"] == before.losses["interaction"]
    assert again.matches == before.matches


@pytest.mark.parametrize("operation", ["ce", "l2_hidden", "l2_features", "none"])
def test_what_needs_no_verbalizers_of_the_teacher_trains_none(
    store: Any, fields: dict[str, str], operation: str
) -> None:
    settings = SETTINGS.replace("{num", f"{{intermediate: {operation}, num")
    reports = Reports()
    told = distillation_of(store, store.verify(do_work(spec(**fields, settings_yaml=settings), store, reports)))
    assert "verbalization_teacher" not in {phase for phase, _ in reports.steps}
    assert reports[-1][0] == 1
    assert "teacher_verbalizers" not in {each.role for each in told.manifest.parents}
    assert len(read_report(told.path).losses["interaction"]) == 4


def test_what_cannot_become_a_job_is_refused(store: Any, fields: dict[str, str], add_log: Any) -> None:
    log = add_log().digest
    for change, text in (
        ({"teacher": fields["dataset"]}, "^teacher: expected a kind of model, edge_model, got dataset"),
        ({"student": log}, "^student: expected a kind of model, edge_model, got log"),
        ({"dataset": log}, "^dataset: expected a kind of dataset, got log"),
        ({"teacher_verbalizers": log}, "^teacher_verbalizers: expected a kind of verbalizers, got log"),
        ({"teacher": "no tag!"}, "expected a digest"),
        (
            {"teacher": fields["student"], "student": fields["teacher"]},
            "^teacher, student: teacher: expected at least as many decoder layers as the student's 4, got 2",
        ),
        ({"num_workers": 1000}, r"^num_workers: expected at most \d+, got 1000"),
        ({"num_teachers": 1000}, r"^num_teachers: expected at most \d+, got 1000"),
        ({"num_workers": 2, "settings_yaml": SETTINGS.replace(": 2\nd", ": 1\nd")}, "^num_workers: expected at most"),
        ({"seed": 2**40}, "^seed: expected at most"),
        ({"settings_yaml": ""}, "^settings_yaml: expected a mapping"),
        ({"settings_yaml": "distill: ["}, "^settings_yaml: expected YAML"),
        ({"settings_yaml": "distill: 3"}, "^settings_yaml: expected a mapping"),
        ({"settings_yaml": "distill: {a: &a [1], b: *a}"}, "^settings_yaml: expected YAML without aliases"),
        ({"settings_yaml": SETTINGS.replace("rank: 4", "rank: 2020-01-01")}, "lora_rank: expected a whole number"),
        ({"settings_yaml": "batch_size: 2"}, "^settings_yaml: distill: expected num_verbalization_steps, got none"),
        (
            {"settings_yaml": f"{SETTINGS}\nout: /etc"},
            "^settings_yaml: expected some of .*, distill, got 'out'",
        ),
        ({"settings_yaml": SETTINGS.replace("{num", "{seed: 1, num")}, "^settings_yaml: distill: expected the seed"),
        ({"settings_yaml": SETTINGS.replace("{num", "{what: 1, num")}, "^settings_yaml: distill: .*unknown key 'what'"),
        ({"settings_yaml": SETTINGS.replace("rank: 4", "rank: -4")}, "^settings_yaml: .*lora_rank: expected a whole"),
        ({"settings_yaml": SETTINGS.replace("size: 2", "size: 0")}, "^settings_yaml: batch_size: expected a whole"),
        (
            {"settings_yaml": SETTINGS.replace("{num", "{student_targets: [3], num")},
            r"^teacher, student: student targets: expected ascending layers within 1\.\.2, got \[3\]",
        ),
        (
            {"settings_yaml": SETTINGS.replace("{num", "{teacher_targets: [3], num")},
            "^teacher, student: targets: expected at least as many teacher as student targets",
        ),
        (
            {"settings_yaml": f"targets: llava_onevision{SETTINGS}"},
            "^settings_yaml: preset llava_onevision: student targets",
        ),
        ({"settings_yaml": f"targets: other{SETTINGS}"}, "^settings_yaml: targets: expected one of qwen2_vl"),
        ({"settings_yaml": "#" * 70_000}, "^settings_yaml: characters: expected at most 65536"),
    ):
        with pytest.raises(InvalidRequestError, match=text):
            check_spec(spec(**{**fields, **change}), store)
    for change in ({"teacher": "none"}, {"dataset": "0" * 64}, {"teacher_verbalizers": "none"}):
        with pytest.raises(NotFoundError):
            check_spec(spec(**{**fields, **change}), store)
    check_spec(spec(**fields, settings_yaml=f"targets: every_layer\nmax_length: 90{SETTINGS}"), store)
    check_spec(spec(**fields), store)


def test_other_tokenizers_are_refused_without_the_opt_in(
    store: Any, fields: dict[str, str], teacher_directory: Path
) -> None:
    from vlmpress.data import Record, Turn
    from vlmpress_services.pipeline.tiny_models import build_tokenizer

    words = build_tokenizer([Record("1", (), (Turn("what else is it ?", "blue"),))])
    with store.draft() as draft:
        shutil.copytree(teacher_directory, draft.path, dirs_exist_ok=True)
        words.save_pretrained(draft.path)
        other = draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "0"))
    changed = fields | {"teacher": other.digest}
    with pytest.raises(InvalidRequestError, match=r"^teacher, student: vocabulary: expected "):
        check_spec(spec(**changed), store)
    check_spec(spec(**changed, settings_yaml=SETTINGS.replace("{num", "{alignment: shared_words, num")), store)


@pytest.mark.parametrize("field", ["teacher", "student"])
@pytest.mark.parametrize("name", ["reduction_policy.json", "visual_compression.json"])
def test_a_model_that_would_run_without_what_it_has_is_refused(
    store: Any, fields: dict[str, str], field: str, name: str
) -> None:
    with store.draft() as draft:
        (draft.path / "config.json").write_text("{}")
        (draft.path / name).write_text("{}")
        model = draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "0"))
    with pytest.raises(InvalidRequestError, match=f"^{field}: .*{name}"):
        check_spec(spec(**(fields | {field: model.digest})), store)


def test_missing_extras_are_named(store: Any, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_spec(spec(**fields, num_teachers=1), store)
    with monkeypatch.context() as patched:
        patched.setattr("vlmpress_services.jobs.requirements.find_spec", lambda _: None)
        with pytest.raises(ExtraMissingError, match=r"Ray not installed; .*vlmpress-services\[ray\]"):
            check_spec(spec(**fields, num_teachers=1), store)
    monkeypatch.setitem(__import__("sys").modules, "vlmpress_services.jobs.distilling.pairs", None)
    with pytest.raises(ExtraMissingError, match=r"distill: package not installed .*vlmpress-services\[verbdistill\]"):
        check_spec(spec(**fields), store)


def test_a_run_whose_loss_is_no_number_fails_with_one_line(store: Any, fields: dict[str, str]) -> None:
    job = spec(**fields, settings_yaml=SETTINGS.replace("interaction_lr: 0.01", "interaction_lr: 1.0e+30"))
    with pytest.raises(VerbDistillError, match=r"^interaction: expected .*finite .*step \d+"):
        do_work(job, store, Reports())
    assert len(list((store.root / "runs").iterdir())) == 1
