"""Assessing redundancy: answers and attention against slow references on small models."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stagetrain import CompressionSetting, attach
from stagetrain.assessing import (
    Question,
    assess,
    assessment_table,
    assessment_to_json,
    questions_of,
    sweep_settings,
)
from stagetrain.assessing.attention import KINDS, AttentionMeter, kinds_of
from stagetrain.assessing.prompting import encode, prompt_text
from stagetrain.assessing.scoring import Score, Tally
from stagetrain.assessing.sweeping import batches, tokens_left
from stagetrain.errors import ConfigError, ImageUnreadableError, SampleError, ScheduleError, TemplateError
from stagetrain.families import Layout, UnitGroup
from vlmpress.data import Record, Turn

MakeModel = Callable[..., Any]
SETTINGS = (
    *sweep_settings([1, 2], [2, 3]),
    *sweep_settings([1], [2], ["random", "k_means", "attention", "average_2d"]),
)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """Noise images, prompts of several lengths, one conversation, one question without an image."""
    folder = tmp_path_factory.mktemp("noise")
    asked = ["what colour is this", "is this red or blue or green", "is it yellow", "what is it"]
    answers = ["red", "yes", "no", "is this it"]
    found = []
    for index, question, answer in zip(range(7), itertools.cycle(asked), itertools.cycle(answers), strict=False):
        torch.manual_seed(index)
        path = folder / f"{index}.png"
        Image.fromarray(torch.randint(0, 255, (16, 16, 3), dtype=torch.uint8).numpy()).save(path)
        turns = (Turn("is this red", "no"),) * (index == 3)
        found.append(Question((path,), (*turns, Turn(question, answer))))
    return [*found, Question((), (Turn("what is red or blue", "yes"),))]


def make(make_model: MakeModel) -> Any:
    model = make_model(3)
    # Answers of an untrained model would all be one word.
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.mul_(3)
    model.generation_config.suppress_tokens = [3]
    return model


def alone(model: Any, processor: Any, question: Question, limit: int) -> str:
    """Greedy answer to one question by whole forwards, without cache or padding."""
    inputs = encode(processor, [question])
    ids = inputs["input_ids"]
    for _ in range(limit):
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[0, -1]
        logits[3] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        if ids[0, -1] == 1:
            break
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_accuracy_is_that_of_questions_asked_one_by_one(
    make_model: MakeModel, processor: Any, questions: list[Question]
) -> None:
    model = make(make_model)
    expected = {}
    attachment = attach(model)
    for setting in (None, *SETTINGS):
        attachment.clear() if setting is None else attachment.set(setting)
        expected[setting] = [alone(model, processor, question, 3) for question in questions]
    attachment.detach()
    assert len({tuple(answers) for answers in expected.values()}) > 2
    # What the model says without compression is taken for right, so that accuracy says something.
    asked = [
        Question(question.images, (*question.turns[:-1], Turn(question.turns[-1].question, answer or "yes")))
        for question, answer in zip(questions, expected[None], strict=True)
    ]
    seen: list[tuple[int, int]] = []
    found = assess(
        model,
        processor,
        asked,
        SETTINGS,
        batch_size=3,
        max_new_tokens=3,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 8), (6, 8), (7, 8), (8, 8)]
    assert [result.setting for result in found.results] == [None, *SETTINGS]
    for result in found.results:
        right = [a == q.answer for a, q in zip(expected[result.setting], asked, strict=True)]
        assert result.score == Score(8, sum(right) / 8)
        assert sum(score.num_questions for score in result.by_type.values()) == 8
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_ratios_are_those_of_equation_3(make_model: MakeModel, processor: Any, questions: list[Question]) -> None:
    found = assess(make(make_model), processor, questions, SETTINGS[:4], max_new_tokens=1)
    assert (found.num_layers, found.visual_tokens) == (3, 4.0)
    assert found.results[0].cr_percent == 100
    for result in found.results[1:]:
        assert result.setting is not None
        layer, left = result.setting.layer, -(-4 // result.setting.stride)
        assert result.cr_percent == pytest.approx(100 * 3 * 4 / ((3 - layer) * left + layer * 4))
        assert result.retained_percent == pytest.approx(1e4 / result.cr_percent)


def test_attention_is_that_of_eager_layers_row_by_row(
    make_model: MakeModel, processor: Any, questions: list[Question]
) -> None:
    model = make(make_model)
    totals: dict[tuple[int, str], list[float]] = {}
    means: dict[tuple[int, str], list[float]] = {}
    eager = make(make_model)
    eager.set_attn_implementation("eager")
    for question in questions[:-1]:
        inputs = encode(processor, [question])
        ids = inputs["input_ids"][0].tolist()
        with torch.no_grad():
            attentions = eager(**inputs, output_attentions=True).attentions
        first = ids.index(3)
        for layer, attention in enumerate(attentions):
            row = attention[0, :, -1].mean(0).tolist()
            for kind in KINDS:
                own = [
                    value
                    for place, (value, token) in enumerate(zip(row, ids, strict=True))
                    if kind == ("visual" if token == 3 else "system" if place < first else "rest")
                ]
                totals.setdefault((layer, kind), []).append(sum(own))
                means.setdefault((layer, kind), []).append(sum(own) / len(own))
    found = assess(model, processor, questions, [], batch_size=3, max_new_tokens=2)
    assert [layer.layer for layer in found.attention] == [0, 1, 2]
    for layer in found.attention:
        assert sum(layer.total.values()) == pytest.approx(1, abs=1e-5)
        for kind in KINDS:
            expected = totals[layer.layer, kind]
            assert layer.total[kind] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
            expected = means[layer.layer, kind]
            assert layer.per_token[kind] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_kinds_of_tokens() -> None:
    visual = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    real = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    assert kinds_of(visual, real).long().tolist() == [
        [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]],
        [[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 1]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
    ]


def test_a_kind_that_no_prompt_has_is_none(make_model: MakeModel, processor: Any, questions: list[Question]) -> None:
    model = make(make_model)
    meter = AttentionMeter(model.model.language_model.layers)
    inputs = encode(processor, questions[:2])
    inputs = {name: value[:, -16:] if value.ndim == 2 else value for name, value in inputs.items()}
    visual = inputs["input_ids"] == 3
    with meter.watching(visual, visual | True), torch.no_grad():
        model(input_ids=inputs["input_ids"].masked_fill(visual, 5))
    result = meter.result()
    assert (result[0].per_token["system"] is None) == (not bool((visual.cumsum(1) == 0)[:, 0].any()))


@settings(max_examples=30, deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3)), max_size=3),
    stride=st.integers(1, 6),
    layer=st.integers(0, 3),
    num_fixed=st.integers(0, 3),
    name=st.sampled_from(["average", "vcc", "average_2d"]),
)
def test_tokens_left_are_counted_layer_by_layer(
    groups: list[tuple[int, int, int]], stride: int, layer: int, num_fixed: int, name: str
) -> None:
    from stagetrain.compressors import compressor_named

    total = sum(rows * columns * units for rows, columns, units in groups) + num_fixed
    layout = Layout(
        tuple(
            UnitGroup((rows, columns), torch.zeros(units).long(), torch.zeros(units, rows * columns).long())
            for rows, columns, units in groups
        ),
        torch.ones(1, total).bool(),
    )
    setting = CompressionSetting(layer=layer, stride=stride, compressor=name)
    left = sum(units * compressor_named(name).count((rows, columns), stride) for rows, columns, units in groups)
    expected = sum(total if index < layer else left + num_fixed for index in range(4))
    assert tokens_left(layout, 4, setting) == expected
    assert tokens_left(layout, 4, None) == 4 * total


def test_answers_are_right_when_equal_but_for_case_and_space() -> None:
    tally = Tally()
    for kind, expected, answer in [("yes/no", "Yes", " yes "), ("yes/no", "no", "yes"), ("other", "red", "reddish")]:
        tally.add(kind, expected, answer)
    assert tally.overall == Score(3, 1 / 3)
    assert tally.by_type == {"yes/no": Score(2, 0.5), "other": Score(1, 0.0)}


def test_every_turn_outside_training_is_a_question() -> None:
    turns = (Turn("a", "yes"), Turn("b", "2"), Turn("c", "red"))
    records = [Record("0", (), turns, "test"), Record("1", (Path("x"),), turns[:1], "train")]
    found = questions_of(records)
    assert [(question.turns, question.type) for question in found] == [
        (turns[:1], "yes/no"),
        (turns[:2], "number"),
        (turns, "other"),
    ]
    assert len(questions_of([Record("0", (), turns)])) == 3
    images = (Path("x"), Path("y"))
    marked = (Turn("a", "yes"), Turn("<image> b", "no"), Turn("<image> c", "no"))
    shown = [question.images for question in questions_of([Record("0", images, marked)])]
    assert shown == [(), images[:1], images]
    assert [question.images for question in questions_of([Record("0", images, turns)])] == [images] * 3
    with pytest.raises(SampleError, match="outside the training split"):
        questions_of(records[1:])


def test_a_limit_draws_always_the_same_in_order() -> None:
    records = [Record(str(index), (), (Turn(f"{index}", "yes"),)) for index in range(50)]
    first = questions_of(records, 10)
    assert first == questions_of(records, 10)
    places = [int(question.turns[0].question) for question in first]
    assert places == sorted(set(places))
    assert places != list(range(10))
    assert questions_of(records, 50) == questions_of(records)


def test_questions_without_images_come_in_batches_of_their_own(questions: list[Question]) -> None:
    mixed = [questions[-1], *questions[:3], questions[-1]]
    assert [len(batch) for batch in batches(mixed, 2)] == [2, 1, 2]
    assert all(len({bool(question.images) for question in batch}) == 1 for batch in batches(mixed, 2))


def test_prompts_end_where_the_answer_begins(processor: Any, questions: list[Question]) -> None:
    assert prompt_text(processor, questions[0]) == "USER : <image> what colour is this ASSISTANT : "
    assert prompt_text(processor, questions[3]) == (
        "USER : <image> is this red ASSISTANT : no <eos> USER : what is it ASSISTANT : "
    )
    marked = Question((Path("a"), Path("b")), (Turn("is<image>or<image>", "no"),))
    assert prompt_text(processor, marked) == "USER : is <image> or <image> ASSISTANT : "


def test_a_sweep_is_every_layer_with_every_stride() -> None:
    places = [(setting.compressor, setting.layer, setting.stride) for setting in sweep_settings([1, 2], [4, 8])]
    assert places == [("average", 1, 4), ("average", 1, 8), ("average", 2, 4), ("average", 2, 8)]
    with pytest.raises(ConfigError, match=r"needs no training .* 'q_former'"):
        sweep_settings([0], [4], ["q_former"])


def test_what_cannot_be_assessed_is_refused(
    make_model: MakeModel, processor: Any, questions: list[Question], tmp_path: Path
) -> None:
    model = make(make_model).train()
    with pytest.raises(SampleError, match="about an image"):
        assess(model, processor, questions[-1:], [])
    for layer, stride in ((3, 2), (1, 5)):
        with pytest.raises(ScheduleError, match="compression: expected"):
            assess(model, processor, questions, [CompressionSetting(layer=layer, stride=stride)])
    missing = Question((tmp_path / "none.png",), questions[0].turns)
    with pytest.raises(ImageUnreadableError, match=r"none\.png"):
        assess(model, processor, [missing], SETTINGS[:1])
    bare = type("Bare", (), {"chat_template": None, "tokenizer": type("Plain", (), {"chat_template": None})})
    with pytest.raises(TemplateError, match="got none"):
        prompt_text(bare, questions[0])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_reports_hold_what_was_found(make_model: MakeModel, processor: Any, questions: list[Question]) -> None:
    found = assess(make(make_model), processor, questions, SETTINGS[:2], max_new_tokens=1)
    plain = json.loads(json.dumps(assessment_to_json(found)))
    assert [row["stride"] for row in plain["results"]] == [None, 2, 3]
    assert plain["results"][1]["by_type"]["yes/no"]["num_questions"] == found.results[1].by_type["yes/no"].num_questions
    assert plain["attention"][2]["total"]["visual"] == found.attention[2].total["visual"]
    table = assessment_table(found).splitlines()
    assert table[0] == "8 questions, 4 visual tokens, 3 layers"
    assert table[4].split()[:3] == ["average", "1", "2"]
    assert table[-1].split()[0] == "2"
