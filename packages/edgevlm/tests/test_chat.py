"""The command's conversation, on pipes and on a terminal."""

import io
import json
import os
import pty
import sys

import pytest

import vlmpress.cli
from edgevlm import Engine, cli, cli_chat
from edgevlm.errors import EdgeVlmError, RequestError
from edgevlm.serving.conversation import Conversation
from edgevlm.serving.events import Finish
from edgevlm.serving.requests import Turn
from vlmpress.artifact import ArtifactError

CHAT = (
    "<s>{% for message in messages %}{{ 'USER' if message.role == 'user' else ' ASSISTANT' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}{{ '</s>' if message.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT{% endif %}"
)


def run(*arguments):
    return vlmpress.cli.run(cli.app, (EdgeVlmError, ArtifactError), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    made, processor = tiny.llava()
    processor.chat_template = CHAT
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(model):
    return Engine.load(model)


@pytest.fixture
def picture(tiny, tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(tiny.encoded(tiny.image()))
    return path


@pytest.fixture
def say(monkeypatch):
    def type_in(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return type_in


def expected_texts(engine, picture, num_tokens=4):
    """Of a first question with the image, of a second one, and of the second with two images."""
    data = picture.read_bytes()
    first = list(engine.generate(data, "what is the shape", num_tokens))[-1].text
    history = [Turn(question="what is the shape", answer=first, num_images=1)]
    second = list(engine.generate(data, "is it red", num_tokens, history=history))[-1].text
    third = list(engine.generate([data, data], "is it red", num_tokens, history=history))[-1].text
    return first, second, third


def test_a_conversation_is_kept(engine, model, picture, say, capsys):
    first, second, third = expected_texts(engine, picture)
    for middle, expected in (([], second), ([f"/image {picture}"], third)):
        say("what is the shape", *middle, "", "is it red")
        assert run("chat", model, picture, "--max-new-tokens", 4) == 0
        assert capsys.readouterr().out == f"{first}\n{expected}\n"


def test_reset_begins_anew_and_exit_ends(engine, model, picture, say, capsys):
    first, _, _ = expected_texts(engine, picture)
    say("what is the shape", f"/image {picture}", "/reset", "what is the shape", "/exit", "is it red")
    assert run("chat", model, picture, "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out == f"{first}\n{first}\n"


def test_json_is_one_line_an_answer(model, picture, say, capsys):
    say("what is the shape", "is it red")
    assert run("chat", model, picture, picture, "--max-new-tokens", 3, "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["num_visual_tokens"] for answer in answers] == [32, 32]
    assert answers[1]["num_prompt_tokens"] > answers[0]["num_prompt_tokens"]


def test_bad_input_is_one_line_and_the_chat_goes_on(engine, model, picture, say, capsys, tmp_path):
    first, second, _ = expected_texts(engine, picture)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    mistakes = (
        "/image", f"/image {tmp_path / 'none.png'}", f"/image {bad}", "/image \0", "/unknown", "what is <image>",
        "what " * 130,
    )  # fmt: skip
    say("what is the shape", *mistakes, "is it red")
    assert run("chat", model, picture, "--max-new-tokens", 4) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{first}\n{second}\n"
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(mistakes)
    assert errors[-1].endswith("/reset begins anew")


@pytest.mark.parametrize("arguments", [("--temperature", -1), ("--top-p", 0), ("--seed", -1), ("--prompt", " ")])
def test_bad_options(model, arguments, capsys):
    assert run("chat", model, *arguments) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]) == 1


def test_draws_follow_the_seed(model, say, capsys):
    texts = []
    for seed in (1, 1, 2):
        assert (
            run("chat", model, "--prompt", "what is", "--max-new-tokens", 20, "--temperature", 3, "--seed", seed) == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_that_was_left_is_no_turn(engine, picture):
    conversation = Conversation(engine, [picture.read_bytes()], max_new_tokens=4)
    next(conversation.ask("what is the shape"))
    assert conversation.turns == ()
    with pytest.raises(RequestError):
        conversation.ask("what is <image>")
    finish = list(conversation.ask("what is the shape"))[-1]
    assert isinstance(finish, Finish)
    assert conversation.turns == (Turn(question="what is the shape", answer=finish.text, num_images=1),)
    conversation.add_image(picture.read_bytes())
    assert conversation.num_images == 2


def test_on_a_terminal_it_asks_and_ends_with_the_input(engine, model, picture, capsys, monkeypatch):
    first, second, _ = expected_texts(engine, picture)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        # The last is Ctrl-D.
        os.write(ours, b"what is the shape\nis it red\n\x04")
        assert run("chat", model, picture, "--max-new-tokens", 4) == 0
    os.close(ours)
    captured = capsys.readouterr()
    assert captured.out == f"> {first}\n> {second}\n> \n"
    assert "/image PATH shows one more image" in captured.err


def test_bytes_that_are_no_text_do_no_harm(model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"what \xff\xfe is\nwhat is\n"), encoding="utf-8"))
    assert run("chat", model, "--max-new-tokens", 1, "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_interrupted_answer_is_left_and_the_chat_goes_on(engine, model, picture, capsys, monkeypatch):
    first, _, _ = expected_texts(engine, picture)
    answer, interrupted = cli_chat._answer, []

    def impatient(conversation, prompt, **options):
        if not interrupted:
            interrupted.append(prompt)
            next(conversation.ask(prompt))
            raise KeyboardInterrupt
        answer(conversation, prompt, **options)

    monkeypatch.setattr(cli_chat, "_answer", impatient)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(ours, b"is it red\nwhat is the shape\n/exit\n")
        assert run("chat", model, picture, "--max-new-tokens", 4) == 0
    os.close(ours)
    assert capsys.readouterr().out == f"> \n> {first}\n> "
