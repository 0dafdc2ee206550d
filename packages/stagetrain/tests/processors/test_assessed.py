"""Every family can be assessed: questions of all kinds in batches, with padding, several images and none."""

from typing import Any

import pytest
import torch

from stagetrain import attach
from stagetrain.assessing import assess, questions_of, sweep_settings
from stagetrain.assessing.prompting import encode
from stagetrain.families import family_of
from vlmpress.data import Record

SETTINGS = sweep_settings([0, 1], [4], ["average", "attention"])


def test_batches_answer_as_each_question_alone(family: Any, mixture: list[Record]) -> None:
    model, questions = family.model(), questions_of(mixture)
    model.generation_config.suppress_tokens = [family.processor.image_token_id]
    batched, single = (
        assess(model, family.processor, questions, SETTINGS, batch_size=size, max_new_tokens=3) for size in (4, 1)
    )
    assert batched.visual_tokens == single.visual_tokens
    assert [result.cr_percent for result in batched.results] == [result.cr_percent for result in single.results]
    assert [result.score for result in batched.results] == [result.score for result in single.results]
    for first, second in zip(batched.attention, single.attention, strict=True):
        assert first.total == pytest.approx(second.total, rel=1e-4)
        assert first.per_token == pytest.approx(second.per_token, rel=1e-4)
        assert sum(first.total.values()) == pytest.approx(1, abs=1e-5)


def test_ratios_are_of_the_tokens_that_layers_see(family: Any, mixture: list[Record]) -> None:
    """Counted in the layers themselves, one question at a time."""
    model = family.model()
    layers = family_of(model).decoder(model).layers
    seen: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, args, output: seen.append(output.shape[1]))
    questions = [question for question in questions_of(mixture) if question.images]
    found = assess(model, family.processor, questions, SETTINGS[:2], max_new_tokens=1)
    attachment = attach(model)
    totals = []
    for setting in (None, *SETTINGS[:2]):
        attachment.clear() if setting is None else attachment.set(setting)
        totals.append(0)
        for question in questions:
            inputs = encode(family.processor, [question])
            is_visual = family_of(model).layout(model, inputs).visual
            seen.clear()
            with torch.no_grad():
                model(**inputs)
            totals[-1] += sum(seen) - len(layers) * int((~is_visual).sum())
    expected = [100 * totals[0] / total for total in totals]
    assert [result.cr_percent for result in found.results] == pytest.approx(expected)
