"""A worker's part of an evaluation: answers the questions of one shard."""

from collections.abc import Sequence
from functools import lru_cache

from edgevlm import Batcher, Engine, Failed, Finish, GenerationRequest
from vlmpress.data import IMAGE_MARK, Record, question_type
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.evaluating.shards import Answered, Shard
from vlmpress_services.store.opening import open_store


def answer_shard(location: str, shard: Shard) -> list[Answered]:
    """Answers a shard's questions greedily, all of them as one continuous batch; runs wherever a runner puts it.

    The answers depend on the shard alone, so whoever does it again gets the same.

    Args:
        location: Of the store that holds model and dataset, as `open_store` takes it.
        shard: What to answer.

    Raises:
        NotFoundError: The store lacks the model or the dataset.
        edgevlm.EdgeVlmError: A question or its image is refused.
        vlmpress.data.DataError: The dataset's records are at fault.
    """
    records = _questions(location, shard.dataset)[shard.start : shard.stop]
    answers = answer_records(_engine(location, shard.model), records, shard.max_new_tokens)
    return [
        Answered(
            index,
            question_type(record.turns[0].answer),
            record.turns[0].question,
            record.turns[0].answer,
            answer.text,
            answer.num_visual_tokens,
        )
        for index, (record, answer) in enumerate(zip(records, answers, strict=True), shard.start)
    ]


def answer_records(engine: Engine, records: Sequence[Record], max_new_tokens: int) -> list[Finish]:
    """How the greedy answer to each record's first question ended, in order; errors as in `answer_shard`."""
    batcher = Batcher(engine)
    places = {
        batcher.submit(
            engine.prepare_request(
                GenerationRequest(
                    # The engine puts images before the question.
                    prompt=record.turns[0].question.replace(IMAGE_MARK, "").strip(),
                    max_new_tokens=max_new_tokens,
                    images=tuple(path.read_bytes() for path in record.images),
                )
            )
        ): place
        for place, record in enumerate(records)
    }
    answers: dict[int, Finish] = {}
    while batcher.has_work:
        for handle, event in batcher.step():
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finish):
                answers[places[handle]] = event
    return [answers[place] for place in range(len(records))]


# A worker does many shards of one dataset and one model, one after another.
@lru_cache(maxsize=1)
def _questions(location: str, dataset: str) -> list[Record]:
    return read_evaluation(open_store(location).resolve(dataset).path)


@lru_cache(maxsize=1)
def _engine(location: str, model: str) -> Engine:
    return Engine.load(open_store(location).verify(model).path)
