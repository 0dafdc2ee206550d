"""Spreads the shards of an evaluation over a runner's workers."""

from collections.abc import Sequence
from pathlib import Path

from vlmpress_services.evaluating.answering import answer_shard
from vlmpress_services.evaluating.shards import Answered, Shard, ShardFolder
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import OnProgress, Runner


def answer_shards(
    location: str,
    shards: Sequence[Shard],
    folder: Path,
    runner: Runner,
    resources: TaskResources,
    on_progress: OnProgress,
) -> list[Answered]:
    """All answers in the order of the questions; what an earlier run has answered is taken from its files.

    Args:
        location: Of the store, as every worker reaches it.
        shards: Of one evaluation.
        folder: Of the results; survives a kill of this process.
        runner: Does the shards.
        resources: Of each shard's worker.
        on_progress: Told how many shards are done, of how many.

    Raises:
        WorkersDiedError: A shard's workers died more often than the resources allow.
        Exception: As `answer_shard`.
    """
    results = ShardFolder(folder)
    done = {shard: answers for shard in shards if (answers := results.read(shard)) is not None}
    missing = [shard for shard in shards if shard not in done]
    on_progress(len(done), len(shards), "")
    for index, answers in runner.each(answer_shard, [(location, shard) for shard in missing], resources):
        shard = missing[index]
        results.write(shard, answers)
        done[shard] = answers
        on_progress(len(done), len(shards), f"questions {shard.start} to {shard.stop - 1}")
    return [answer for shard in shards for answer in done[shard]]
