import copy

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from quantpack import PartRecipe, PartSearch, Recipe, Scheme, SearchError
from quantpack.accuracy import answer_accuracy
from quantpack.calibration.dataset import IGNORED, Question, batches
from quantpack.quantizing import quantize
from quantpack.search.candidates import AgqSpace
from quantpack.sweeping import Setting, standard_settings, sweep


@pytest.fixture(scope="module")
def model(llava: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    return copy.deepcopy(llava).float()


@pytest.fixture(scope="module")
def questions(model: LlavaForConditionalGeneration) -> list[Question]:
    """Answers are what the model itself says, but for every fourth."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(16):
        ids = torch.cat((torch.full((1, 64), 3), torch.randint(4, 60, (1, 4 + number % 3), generator=generator)), 1)
        sample = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 64, 64, generator=generator)}
        with torch.no_grad():
            said = int(model(**sample).logits[0, -1].argmax())
        answer = torch.tensor([[said if number % 4 else (said + 1) % 60]])
        sample["input_ids"] = torch.cat((ids, answer), 1)
        sample["attention_mask"] = torch.ones_like(sample["input_ids"])
        found.append(Question(sample=sample, labels=torch.cat((torch.full_like(ids, IGNORED), answer), 1)))
    return found


def test_accuracy_is_the_same_one_by_one_and_in_batches(
    model: LlavaForConditionalGeneration, questions: list[Question]
) -> None:
    assert answer_accuracy(model, questions) == 0.75
    together = batches(questions, 5)
    assert [len(batch.labels) for batch in together] == [5, 5, 5, 1]
    assert answer_accuracy(model, together) == 0.75
    model.train()
    answer_accuracy(model, questions[:1])
    assert model.training
    model.eval()


def test_every_setting_is_measured_and_the_model_comes_back(
    model: LlavaForConditionalGeneration, questions: list[Question]
) -> None:
    before = {name: param.clone() for name, param in model.named_parameters()}
    settings = [setting for setting in standard_settings() if setting.name in ("group 32", "tensor", "GPTQ")]
    samples = [question.sample for question in questions[:4]]
    search = {"language": PartSearch(space=AgqSpace(group_size=16, num_channels=(1, 0), shares=(0.1,)), max_drop=1.0)}
    steps: list[str] = []
    found = sweep(
        model,
        settings,
        samples,
        questions,
        search=search,
        on_progress=lambda *step: steps.append(step[2]),  # type: ignore[arg-type]
    )
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    assert [point.name for point in found.points] == ["group 32", "tensor", "GPTQ", "ECM"]
    assert steps[:3] == ["group 32", "tensor", "GPTQ"]
    assert found.full_accuracy == 0.75
    by_name = {point.name: point for point in found.points}
    assert by_name["tensor"].cr_codes > by_name["group 32"].cr_codes
    assert by_name["tensor"].bits_per_weight < by_name["group 32"].bits_per_weight
    assert by_name["tensor"].cr_by_part.keys() == {"vision", "language", "other"}
    copied = copy.deepcopy(model)
    quantize(copied, Scheme(group_size=32))
    assert by_name["group 32"].accuracy == answer_accuracy(copied, questions)
    assert found.as_fields()["paths"]["language"][0]["accepted"]
    assert "AGQ search, language" in found.svg()


def test_standard_settings_have_names_of_their_own() -> None:
    settings = standard_settings(bits=3, symmetric=True)
    assert len({setting.name for setting in settings}) == len(settings)
    assert all(setting.recipe.default.scheme.bits == 3 for setting in settings)


def test_nothing_to_do_is_refused(model: LlavaForConditionalGeneration, questions: list[Question]) -> None:
    setting = Setting(name="group", kind="group", recipe=Recipe(default=PartRecipe()))
    with pytest.raises(SearchError, match="expected settings and questions, got 1 and 0"):
        sweep(model, [setting], [questions[0].sample], [])
    with pytest.raises(SearchError, match="got 0 and 16"):
        sweep(model, [], [questions[0].sample], questions)
