"""verbdistill distils edge models: from a Llava that sees more tokens of an image, and from one another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from edgevlm import EdgeVlmForConditionalGeneration, build_from_llava
from verbdistill import DistillConfig, Verbalizers, distill, head_of, response_states
from verbdistill.data.collating import RecordBatches
from verbdistill.data.pairing import PairRecordBatches
from verbdistill.verbalizers.bodies import KINDS
from vlmpress.data import Record, Turn

CONFIG = DistillConfig(
    num_verbalization_steps=3,
    num_interaction_steps=3,
    num_sft_steps=2,
    verbalization_lr=1e-3,
    lora_rank=4,
    gradient_checkpointing=True,
)


@pytest.fixture
def llava(tiny_llava_directory: Path) -> Any:
    """16 visual tokens an image, random weights."""
    return LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory).eval()


@pytest.fixture
def processor(tiny_llava_directory: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_llava_directory)


@pytest.fixture(params=["none", "combined"])
def edge(request: Any, llava: Any, processor: Any) -> tuple[Any, Any]:
    """An edge model of 4 visual tokens an image, and its processor."""
    torch.manual_seed(0)
    model, own_processor = build_from_llava(llava, processor, num_compressed_tokens=4, fusion=request.param)
    return model.eval(), own_processor


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = []
    for number in range(4):
        name = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 30), (60 * number, 90, 200)).save(name)
        turns = (Turn("is it a circle ?", "yes"), Turn("what color is the shape ?", "red"))
        made.append(Record(str(number), (name,), turns[: 1 + number % 2]))
    return [*made, Record("text", (), (Turn("is it blue ?", "no"),))]


def test_states_are_those_of_the_model(edge: tuple[Any, Any], records: list[Record]) -> None:
    model, processor = edge
    batch = RecordBatches(records, processor, batch_size=5, seed=0)(0)
    with torch.no_grad():
        states = response_states(model, batch, (1, 2))
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"}, output_hidden_states=True)
    torch.testing.assert_close(states.layers[0], outputs.hidden_states[1][states.positions])
    torch.testing.assert_close(states.last, outputs.hidden_states[2][states.positions])
    torch.testing.assert_close(head_of(model).logits(states.last), outputs.logits[states.positions])


@pytest.mark.parametrize("kind", KINDS)
def test_edge_models_take_bodies_of_every_kind(edge: tuple[Any, Any], records: list[Record], kind: str) -> None:
    model, processor = edge
    batch = RecordBatches(records, processor, batch_size=5, seed=0)(0)
    verbalizers = Verbalizers(model, (1, 2), kind)
    with torch.no_grad():
        states = response_states(model, batch, (1, 2), whole=verbalizers.reads_whole)
    features = verbalizers.features(states)
    assert [part.shape for part in features] == [states.last.shape] * 2
    torch.stack(features).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_edge_model_learns_from_a_llava(
    llava: Any, processor: Any, edge: tuple[Any, Any], records: list[Record], tmp_path: Path
) -> None:
    student, own_processor = edge
    batches = PairRecordBatches(records, processor, own_processor, batch_size=3, seed=0)
    pair = batches(0)
    lengths = [int((batch["input_ids"] == llava.config.image_token_id).sum()) for batch in (pair.teacher, pair.student)]
    assert lengths[0] == 4 * lengths[1] > 0
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = distill(llava, student, batches, CONFIG)
    for losses in result.losses.values():
        assert all(loss > 0 for loss in losses)
    assert len(result.matches) == 3
    changed = {
        name.split(".")[1] for name, value in student.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"language_model", "multi_modal_projector", "compressor"} <= changed
    assert "vision_tower" not in changed
    student.save_pretrained(tmp_path / "out")
    again = EdgeVlmForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    inputs = {name: value for name, value in pair.student.items() if name != "labels"}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, student.eval()(**inputs).logits)


def test_an_edge_model_teaches_another(
    edge: tuple[Any, Any], llava: Any, processor: Any, records: list[Record]
) -> None:
    teacher, own_processor = edge
    torch.manual_seed(1)
    student, _ = build_from_llava(llava, processor, num_compressed_tokens=4)
    batches = RecordBatches(records, own_processor, batch_size=3, seed=0)
    result = distill(teacher, student, batches, CONFIG)
    assert result.teacher_targets == result.student_targets == (1, 2)
    assert result.matches == [[[0], [1]]] * 3
