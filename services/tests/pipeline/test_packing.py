"""The packing step: what a configuration asks for, and a calibrated pack of a small edge model."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quantpack import EcmSearch, PartRecipe, Recipe, Scheme, verify
from quantpack.methods.awq import Awq
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.wire import quantized_model_from_proto
from vlmpress.artifact import Artifact
from vlmpress.cli import UserError
from vlmpress.edgevlm.v1 import edgevlm_pb2
from vlmpress_services.pipeline.config import PackStep, parse_config
from vlmpress_services.pipeline.packing import make_packed, order_of
from vlmpress_services.pipeline.stepping import Stepper


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("{}", Recipe()),
        (
            "{granularity: rows, num_rows: 4, axis: in}",
            PartRecipe(scheme=Scheme(granularity="rows", num_rows=4, axis="in")),
        ),
        ("{granularity: agq, bits: 3}", PartRecipe(scheme=Scheme(granularity="agq", bits=3))),
        ("{rounding: gptq, num_calibration_questions: 8}", PartRecipe(method=Gptq())),
        ("{method: awq, num_calibration_questions: 8}", PartRecipe(method=Awq())),
        (
            "{method: ecm, alpha: 0.3, rounding: gptq, num_calibration_questions: 8}",
            PartRecipe(method=Ecm(alpha=0.3, rounding="gptq")),
        ),
        (
            "{max_accuracy_drop: 0.02, group_size: 32, rounding: gptq, num_calibration_questions: 8}",
            EcmSearch(max_drop=0.02, group_size=32, rounding="gptq"),
        ),
    ],
)
def test_a_configuration_asks_for(text: str, order: Any) -> None:
    step = parse_config(f"pack: {text}", "c.yaml").pack
    assert order_of(step) == (Recipe(default=order) if isinstance(order, PartRecipe) else order)


def test_embeddings_may_be_packed() -> None:
    assert order_of(PackStep(embeddings="int4")) == Recipe(embeddings="int4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{granularity: column}", "pack.granularity"),
        ("{bits: 5}", "pack.bits: .*got 5"),
        ("{group_size: 0}", "pack.group_size"),
        ("{alpha: 0.5}", "alpha with method ecm only, got method rtn"),
        ("{method: awq, rounding: gptq, num_calibration_questions: 4}", "rounding gptq with .*got method awq"),
        ("{method: mbq}", "num_calibration_questions over 0"),
        ("{rounding: gptq}", "num_calibration_questions over 0"),
        ("{max_accuracy_drop: 0.01}", "num_calibration_questions over 0"),
        ("{max_accuracy_drop: 0.01, granularity: agq, num_calibration_questions: 4}", "the search chooses"),
        ("{max_accuracy_drop: .nan, num_calibration_questions: 4}", "pack.max_accuracy_drop"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"c.yaml: .*{message}"):
        parse_config(f"pack: {text}", "c.yaml")


@pytest.fixture
def edge(store: Any, tiny_llava_directory: Path, tmp_path: Path) -> Artifact:
    """The tiny Llava with a compressor and both kinds of fusion."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from edgevlm import build_from_llava

    model, processor = build_from_llava(
        LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory),
        LlavaProcessor.from_pretrained(tiny_llava_directory),
        num_compressed_tokens=4,
        fusion="combined",
    )
    with store.draft() as draft:
        model.save_pretrained(draft.path)
        processor.save_pretrained(draft.path)
        return draft.commit(edgevlm_pb2.EdgeModel(), producer=("test", "0"))


@pytest.mark.parametrize(
    "step",
    [
        PackStep(group_size=16, rounding="gptq", num_calibration_questions=4),
        PackStep(granularity="agq", axis="in", method="ecm", alpha=0.5, num_calibration_questions=4),
        PackStep(group_size=16, method="mbq", num_calibration_questions=4),
        PackStep(group_size=16, max_accuracy_drop=1.0, num_calibration_questions=4, num_search_questions=4),
    ],
    ids=["gptq", "ecm", "mbq", "search"],
)
def test_an_edge_model_is_packed_on_the_run_s_data(
    edge: Artifact, add_dataset: Any, tmp_path: Path, step: PackStep, png: bytes
) -> None:
    from edgevlm import Engine

    dataset = add_dataset()
    stepper = Stepper(tmp_path / "out", 0, {"vlmpress-services": "0.1.0"})
    parents = [("model", edge), ("dataset", dataset)]
    made = stepper.run("edge_packed", {}, parents, partial(make_packed, edge, dataset, step))
    verify(made.path)
    assert [parent.digest for parent in made.manifest.parents] == [edge.digest, dataset.digest]
    stated = quantized_model_from_proto(made.manifest.quantized_model)
    assert stated.recipe is not None
    assert not list((tmp_path / "out" / "scratch").iterdir())
    assert list(Engine.load(made.path).generate(png, "is it red ?", 3))
    if step.max_accuracy_drop:
        assert (made.path / "quantization.svg").exists()
    else:
        assert stated.recipe == order_of(step)
