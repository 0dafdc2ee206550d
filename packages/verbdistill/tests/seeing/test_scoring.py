from pathlib import Path

import pytest
import torch
from PIL import Image

from verbdistill.data.images import read_image
from verbdistill.errors import BatchError
from verbdistill.seeing.asking import encode, prompt_text, search
from verbdistill.seeing.scoring import evaluate, questions_of
from vlmpress.data import QuestionPrior, Record, Turn

CORNERS = {"nw": (0, 0), "ne": (8, 0), "sw": (0, 8), "se": (8, 8)}


@pytest.fixture
def records(tmp_path):
    """One of each corner; what the teacher answers is the corner and the next one."""
    words = list(CORNERS)
    found = []
    for number, (word, corner) in enumerate(CORNERS.items()):
        image = Image.new("RGB", (16, 16))
        image.paste((255, 255, 255), (*corner, corner[0] + 8, corner[1] + 8))
        image.save(tmp_path / f"{word}.png")
        answer = f"{word} {words[(number + 1) % 4]}"
        found.append(Record(word, (tmp_path / f"{word}.png",), (Turn("where", answer),), "test"))
    return found


@pytest.fixture
def asked_as_taught(processor):
    """The teacher was taught to answer behind the token `where`, with no end token."""
    processor = processor()
    processor.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    return processor


@pytest.mark.parametrize("num_beams", [1, 5])
def test_accuracy_by_type_against_the_prior(trained_teacher, asked_as_taught, records, num_beams):
    wrong = [*records[1:], Record("x", records[0].images, (Turn("where", "3"),), None)]
    train = [Record("t", (), (Turn("where", "nw ne"),), "train")]
    seen = []
    found = evaluate(
        trained_teacher,
        asked_as_taught,
        questions_of([*train, records[0], *wrong]),
        num_beams=num_beams,
        prior=QuestionPrior.fit(train),
        batch_size=2,
        max_new_tokens=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert found.num_beams == num_beams
    assert {kind: score.num_questions for kind, score in found.scores.items()} == {"all": 5, "number": 1, "other": 4}
    assert found.scores["other"].accuracy == 1.0
    assert found.scores["number"].accuracy == 0.0
    assert found.scores["all"].accuracy == pytest.approx(0.8)
    assert found.scores["other"].prior == 0.25
    assert found.scores["all"].prior == pytest.approx(0.2)
    assert seen == [(2, 5), (4, 5), (5, 5)]


@torch.no_grad()
def test_beams_are_a_search(llava, asked_as_taught, records):
    """Five beams find an answer at least as likely as greedy search does."""
    model = llava(2, seed=5)
    record = records[0]
    inputs = encode(asked_as_taught, [prompt_text(asked_as_taught, record.turns, 1)], [[read_image(record.images[0])]])
    length = inputs["input_ids"].shape[1]
    found = []
    for num_beams in (1, 5):
        settings = search(model, asked_as_taught, 4, num_beams=num_beams)
        settings.eos_token_id = None
        output = model.generate(**inputs, generation_config=settings)
        mask = torch.ones_like(output)
        logits = model(input_ids=output, attention_mask=mask, pixel_values=inputs["pixel_values"]).logits
        chosen = logits.log_softmax(-1)[0, length - 1 : -1].gather(1, output[0, length:, None])
        found.append(float(chosen.sum()))
    assert found[1] >= found[0] - 1e-5


def test_every_question_of_a_conversation_is_asked_after_the_right_answers():
    turns = (Turn("<image> a", "1"), Turn("b <image>", "2"))
    record = Record("r", (Path("x.png"), Path("y.png")), turns)
    first, second = questions_of([record])
    assert (first.images, first.turns) == ((Path("x.png"),), turns[:1])
    assert (second.images, second.turns) == (record.images, turns)
    unmarked = questions_of([Record("r", (Path("x.png"), Path("y.png")), (Turn("a", "1"), Turn("b", "2")))])
    assert all(len(question.images) == 2 for question in unmarked)


def test_a_limit_draws_the_same_questions_in_their_order():
    records = [Record(str(number), (), (Turn(f"q{number}", "a"),)) for number in range(50)]
    found = [record.id for record in questions_of(records, 7)]
    assert found == [record.id for record in questions_of(records, 7)]
    assert len(found) == 7
    assert found == sorted(found, key=int)
    assert len(questions_of(records, 50)) == len(questions_of(records, 99)) == 50


def test_training_questions_are_not_asked():
    with pytest.raises(BatchError, match="outside the training split"):
        questions_of([Record("r", (), (Turn("q", "a"),), "train")])


def test_questions_with_and_without_images_mix(llava, processor, records):
    text_only = Record("text", (), (Turn("where ?", "no"),))
    found = evaluate(llava(2), processor(), questions_of([records[0], text_only, records[1]]))
    assert found.scores["all"].num_questions == 3
    assert found.scores["yes/no"].num_questions == 1
    assert found.scores["all"].prior is None


def test_an_unreadable_image_is_named(llava, processor, records, tmp_path):
    records[1].images[0].write_bytes(b"no image")
    with pytest.raises(BatchError, match=r"ne\.png"):
        evaluate(llava(2), processor(), records)
