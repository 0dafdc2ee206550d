"""PackJob and SweepJob in this process: what the worker does, and what is refused before there is a worker."""

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from quantpack import EcmSearch, PartRecipe, Recipe, Scheme, Setting, standard_settings, verify
from quantpack.methods.gptq import Gptq
from quantpack.methods.mbq import Mbq
from quantpack.wire import (
    ecm_search_to_proto,
    quantized_model_from_proto,
    recipe_to_proto,
    scheme_to_proto,
    setting_to_proto,
)
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.quantpack.v1 import quantpack_pb2
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError, NotFoundError
from vlmpress_services.jobs.quantizing import job as quantpack_jobs
from vlmpress_services.jobs.work import check_spec, do_work

SCHEME = scheme_to_proto(Scheme(group_size=16))
SEARCH = ecm_search_to_proto(EcmSearch(max_drop=0.5, group_size=16))
GPTQ = Recipe(default=PartRecipe(scheme=Scheme(granularity="rows"), method=Gptq()), parts={"other": None})


def pack_spec(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(pack=pb.PackJob(**fields))


def sweep_spec(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(sweep=pb.SweepJob(**fields))


class Progress(list[tuple[float, str]]):
    def __call__(self, share: float, note: str) -> None:
        assert 0 <= share <= 1
        assert not self or share >= self[-1][0]
        self.append((share, note))


@pytest.mark.parametrize("method", [Gptq(), Mbq()], ids=["layer by layer", "in memory"])
def test_a_pack_calibrates_on_the_dataset(store: Any, add_model: Any, add_dataset: Any, method: Any) -> None:
    model, dataset = add_model(), add_dataset()
    store.tag("data", dataset.digest)
    recipe = Recipe(default=PartRecipe(scheme=Scheme(group_size=16), method=method), parts={"vision": None})
    spec = pack_spec(model=model.digest, recipe=recipe_to_proto(recipe), dataset="data", num_samples=4)
    check_spec(spec, store)
    progress = Progress()
    made = store.verify(do_work(spec, store, progress))
    verify(made.path)
    assert quantized_model_from_proto(made.manifest.quantized_model).recipe == recipe
    assert [(parent.role, parent.digest) for parent in made.manifest.parents] == [
        ("model", model.digest),
        ("dataset", dataset.digest),
    ]
    assert progress[-1][0] == 1
    assert " weights: " in progress[0][1]
    assert not list((store.root / "incoming").iterdir())


def test_a_search_keeps_its_path_in_the_pack(store: Any, add_model: Any, add_dataset: Any) -> None:
    model, dataset = add_model(), add_dataset()
    spec = pack_spec(model=model.digest, search=SEARCH, dataset=dataset.digest, num_samples=4, num_questions=4)
    check_spec(spec, store)
    progress = Progress()
    made = store.verify(do_work(spec, store, progress))
    verify(made.path)
    record = json.loads((made.path / "quantization.json").read_text(encoding="utf-8"))
    assert set(record["search"]["parts"]) == {"vision", "language"}
    assert ElementTree.parse(made.path / "quantization.svg").getroot().tag.endswith("svg")
    assert [parent.role for parent in made.manifest.parents] == ["model", "dataset"]
    assert progress[0][1].startswith("trial 1, ")
    assert {note.split(": ")[1] for _, note in progress} == {"vision", "language"}
    assert progress[-1][0] == 1


def test_a_sweep_is_a_report(store: Any, add_model: Any, add_dataset: Any) -> None:
    model, dataset = add_model(), add_dataset()
    settings = [
        Setting(name="group 16", kind="group", recipe=Recipe(default=PartRecipe(scheme=Scheme(group_size=16)))),
        Setting(name="GPTQ", kind="GPTQ", recipe=GPTQ),
    ]
    spec = sweep_spec(
        model=model.digest,
        dataset=dataset.digest,
        settings=[setting_to_proto(setting) for setting in settings],
        search=SEARCH,
        num_samples=4,
        num_questions=2,
    )
    check_spec(spec, store)
    progress = Progress()
    made = store.verify(do_work(spec, store, progress))
    assert made.manifest.kind == "report"
    assert {file.path for file in made.manifest.files} == {"sweep.json", "sweep.svg"}
    assert [parent.digest for parent in made.manifest.parents] == [model.digest, dataset.digest]
    fields = json.loads((made.path / "sweep.json").read_text(encoding="utf-8"))
    assert [point["name"] for point in fields["points"]] == ["group 16", "GPTQ", "ECM"]
    assert set(fields["paths"]) == {"vision", "language"}
    assert ElementTree.parse(made.path / "sweep.svg").getroot().tag.endswith("svg")
    assert [note for _, note in progress[:2]] == ["1 of 2 settings: group 16", "2 of 2 settings: GPTQ"]
    assert progress[2][1].startswith("trial 1, ")
    assert progress[-1][0] == 1


def test_without_settings_a_sweep_has_the_standard_ones(
    store: Any, add_model: Any, add_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class NoSweepError(Exception):
        pass

    def stop(model: Any, settings: Any, *_: Any) -> Any:
        seen.extend(settings)
        raise NoSweepError

    monkeypatch.setattr("vlmpress_services.jobs.quantizing.work.sweep_artifact", stop)
    spec = sweep_spec(model=add_model().digest, dataset=add_dataset().digest)
    check_spec(spec, store)
    with pytest.raises(NoSweepError):
        do_work(spec, store, Progress())
    assert seen == list(standard_settings())


def test_what_cannot_become_a_job_is_refused(store: Any, add_model: Any, add_dataset: Any, add_log: Any) -> None:
    model, dataset, log = add_model().digest, add_dataset().digest, add_log().digest
    recipe = recipe_to_proto(GPTQ)
    setting = setting_to_proto(Setting(name="a", kind="a", recipe=GPTQ))
    nan = quantpack_pb2.EcmSearch(max_accuracy_drop=float("nan"))
    for spec, text in (
        (pack_spec(model=model), "expected scheme, recipe or search"),
        (pack_spec(model=dataset, scheme=SCHEME), "expected a kind of model, edge_model, got dataset"),
        (pack_spec(model=model, recipe=recipe, dataset=log), "expected a kind of dataset, got log"),
        (pack_spec(model=model, recipe=recipe, dataset="no tag!"), "expected a digest"),
        (pack_spec(model=model, search=SEARCH), "dataset: expected one beside a search"),
        (pack_spec(model=model, search=quantpack_pb2.EcmSearch(), dataset=dataset), "max_accuracy_drop: .*got 0"),
        (pack_spec(model=model, search=nan, dataset=dataset), "max_accuracy_drop: .*got nan"),
        (pack_spec(model=model, scheme=SCHEME, num_samples=3), "num_samples: expected it beside a dataset only, got 3"),
        (pack_spec(model=model, recipe=recipe, dataset=dataset, num_questions=3), "num_questions: .*got 3"),
        (pack_spec(model=model, recipe=recipe, dataset=dataset, num_samples=10**6), "num_samples: .*at most 100000"),
        (sweep_spec(model=model), "expected a digest"),
        (sweep_spec(model=model, dataset=model), "expected a kind of dataset, got model"),
        (sweep_spec(model=log, dataset=dataset), "expected a kind of model, edge_model, got log"),
        (sweep_spec(model=model, dataset=dataset, search=nan), "max_accuracy_drop"),
        (sweep_spec(model=model, dataset=dataset, num_questions=10**6), "num_questions"),
        (sweep_spec(model=model, dataset=dataset, settings=[setting, setting]), "each name once, got 'a' twice"),
        (sweep_spec(model=model, dataset=dataset, settings=[quantpack_pb2.SweepSetting()]), "got ''"),
        (sweep_spec(model=model, dataset=dataset, settings=[quantpack_pb2.SweepSetting(name="a\0")]), "printable"),
        (sweep_spec(model=model, dataset=dataset, settings=[setting] * 257), "at most 256"),
    ):
        with pytest.raises(InvalidRequestError, match=text):
            check_spec(spec, store)
    for spec in (
        pack_spec(model=model, recipe=recipe, dataset="none"),
        pack_spec(model="none", recipe=recipe),
        sweep_spec(model=model, dataset="0" * 64),
    ):
        with pytest.raises(NotFoundError):
            check_spec(spec, store)


def test_a_missing_extra_is_named_before_any_work(
    store: Any, add_model: Any, add_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantpack_jobs, "find_spec", lambda _: None)
    model, dataset = add_model().digest, add_dataset().digest
    for spec in (pack_spec(model=model, search=SEARCH, dataset=dataset), sweep_spec(model=model, dataset=dataset)):
        with pytest.raises(ExtraMissingError, match=r"matplotlib not installed; .*vlmpress-services\[quantpack\]"):
            do_work(spec, store, Progress())
    monkeypatch.setitem(__import__("sys").modules, "vlmpress_services.jobs.quantizing.work", None)
    with pytest.raises(ExtraMissingError, match="pack: package not installed"):
        do_work(pack_spec(model=model, scheme=SCHEME), store, Progress())
