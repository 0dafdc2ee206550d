"""Shards, their files, their answers and what spreads them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgevlm import Engine
from vlmpress.artifact import Artifact
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.evaluating.answering import answer_shard
from vlmpress_services.evaluating.measures import scores_of
from vlmpress_services.evaluating.shards import Answered, Shard, ShardFolder, shards_of
from vlmpress_services.evaluating.spreading import answer_shards
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import LocalRunner

MAX_NEW_TOKENS = 6


def shard(start: int = 2, stop: int = 5) -> Shard:
    return Shard(model="m" * 64, dataset="d" * 64, start=start, stop=stop, max_new_tokens=4, producer="tests 1")


def answers(start: int = 2, stop: int = 5) -> list[Answered]:
    return [Answered(index, "other", "what ?", "red", f"réd {index}", 4) for index in range(start, stop)]


@pytest.fixture
def asked(add_model: Any, add_dataset: Any) -> tuple[Artifact, Artifact]:
    """A model and a dataset of 24 evaluation questions."""
    return add_model(), add_dataset(num_train=1, num_test=24, num_evaluated=24)


@pytest.mark.parametrize(("num_questions", "size"), [(1, 1), (7, 3), (6, 3), (3, 100)])
def test_shards_cover_every_question_once(num_questions: int, size: int) -> None:
    shards = shards_of("m", "d", num_questions, size, 4)
    assert [index for each in shards for index in range(each.start, each.stop)] == list(range(num_questions))
    assert max(each.stop - each.start for each in shards) <= size
    assert len({each.digest for each in shards}) == len(shards)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_below_one_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidRequestError, match="expected at least 1, got 0"):
        shards_of("m", "d", *numbers)


@pytest.mark.parametrize(
    "change", [{"model": "x"}, {"dataset": "x"}, {"start": 1}, {"stop": 6}, {"producer": "tests 2"}]
)
def test_everything_answers_depend_on_is_in_the_digest(change: dict[str, Any]) -> None:
    assert replace(shard(), **change).digest != shard().digest == shard().digest


def test_a_result_is_read_as_it_was_written_and_the_first_one_stays(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path / "results")
    assert folder.read(shard()) is None
    folder.write(shard(), answers())
    folder.write(shard(), [replace(one, answer="blue") for one in answers()])
    assert folder.read(shard()) == answers()
    assert [path.name for path in folder.path.iterdir()] == [f"{shard().digest}.json"]
    assert folder.read(replace(shard(), stop=6)) is None


def test_every_flipped_byte_of_a_result_is_found(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    folder.write(shard(2, 3), answers(2, 3))
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for position in range(len(data) - 1):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        found = folder.read(shard(2, 3))
        assert found is None, position
    path.write_bytes(data[: len(data) // 2])
    assert folder.read(shard(2, 3)) is None


@pytest.mark.parametrize("wrong", [answers(2, 4), answers(1, 4), answers()[::-1], [*answers(), *answers()]])
def test_answers_that_are_not_the_shard_s_are_refused(tmp_path: Path, wrong: list[Answered]) -> None:
    with pytest.raises(InvalidRequestError, match="expected answers 2 to 4"):
        ShardFolder(tmp_path).write(shard(), wrong)
    assert not any(tmp_path.iterdir())


def test_a_shard_s_answers_are_the_engine_s_one_by_one(store: Any, asked: tuple[Artifact, Artifact]) -> None:
    model, dataset = asked
    records = read_evaluation(dataset.path)
    engine = Engine.load(model.path)
    expected = [
        list(engine.generate(record.images[0].read_bytes(), record.turns[0].question, MAX_NEW_TOKENS))[-1].text
        for record in records
    ]
    one = shards_of(model.digest, dataset.digest, 24, 24, MAX_NEW_TOKENS)[0]
    part = replace(one, start=3, stop=22)
    answered = answer_shard(str(store.root), part)
    assert [each.answer for each in answered] == expected[3:22]
    assert [each.index for each in answered] == list(range(3, 22))
    assert [(each.question, each.expected) for each in answered] == [
        (record.turns[0].question, record.turns[0].answer) for record in records[3:22]
    ]


def test_a_missing_model_is_an_error(store: Any, asked: tuple[Artifact, Artifact]) -> None:
    gone = shards_of("0" * 64, asked[1].digest, 2, 2, 2)[0]
    with pytest.raises(NotFoundError):
        answer_shard(str(store.root), gone)


class Breaking(LocalRunner):
    """Ends after some calls, and tells which calls were made."""

    def __init__(self, num_calls: int) -> None:
        self.num_calls = num_calls
        self.made: list[Shard] = []

    def each(self, function: Any, arguments: Sequence[tuple[Any, ...]], resources: TaskResources) -> Iterator[Any]:
        # The last comes first: nobody may count on an order.
        for index in reversed(range(len(arguments))):
            if len(self.made) == self.num_calls:
                raise KeyboardInterrupt
            self.made.append(arguments[index][1])
            yield index, function(*arguments[index])


def test_what_was_answered_is_not_asked_again(store: Any, asked: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    model, dataset = asked
    shards = shards_of(model.digest, dataset.digest, 24, 5, MAX_NEW_TOKENS)
    seen: list[tuple[int, int]] = []

    def run(runner: LocalRunner, folder: Path) -> list[Answered]:
        def look(done: int, total: int, note: str) -> None:
            seen.append((done, total))

        return answer_shards(str(store.root), shards, folder, runner, TaskResources(), look)

    quiet = run(LocalRunner(), tmp_path / "quiet")
    first, second = Breaking(3), Breaking(99)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path / "broken")
    seen.clear()
    assert run(second, tmp_path / "broken") == quiet
    assert sorted(shard.start for shard in first.made + second.made) == [shard.start for shard in shards]
    assert seen == [(3, 5), (4, 5), (5, 5)]
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {f"{shard.digest}.json" for shard in shards}
    assert scores_of(quiet).overall.num_questions == 24


def test_a_damaged_result_is_made_again(store: Any, asked: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    model, dataset = asked
    shards = shards_of(model.digest, dataset.digest, 4, 2, MAX_NEW_TOKENS)
    arguments = (str(store.root), shards, tmp_path, LocalRunner(), TaskResources(), lambda *_: None)
    quiet = answer_shards(*arguments)
    path = tmp_path / f"{shards[0].digest}.json"
    fields = json.loads(path.read_text())
    fields["answers"][0]["answer"] = "blue"
    path.write_text(json.dumps(fields))
    shutil.copy(path, tmp_path / "other.json")
    assert answer_shards(*arguments) == quiet
    assert ShardFolder(tmp_path).read(shards[0]) == quiet[:2]
