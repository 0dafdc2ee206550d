"""The evaluation step: every variant answers in shards, is scored, and is timed as a client of its server sees it."""

import statistics
from functools import partial

from vlmpress.artifact import Artifact
from vlmpress_services.clients import EdgeVlmClient
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.evaluating.measures import evaluation_spec, model_metrics, scores_of
from vlmpress_services.evaluating.predictions import write_predictions
from vlmpress_services.evaluating.shards import shards_of
from vlmpress_services.evaluating.spreading import answer_shards
from vlmpress_services.pipeline.config import EvaluationStep
from vlmpress_services.pipeline.stepping import Outcome, Stepper, Work
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import Runner

NUM_TIMED = 60


def make_evaluation(
    name: str,
    model: Artifact,
    dataset: Artifact,
    address: str,
    config: EvaluationStep,
    stepper: Stepper,
    runner: Runner,
) -> Artifact:
    """The evaluation of one variant, made now or found.

    Args:
        name: Of the variant.
        model: What answers.
        dataset: Its evaluation questions are asked.
        address: Of a server of the run's store.
        config: Only what answers depend on is part of the step's key.
        stepper: Of the run.
        runner: Does the shards.
    """
    key = {"shard_questions": config.shard_questions, "max_new_tokens": config.max_new_tokens}
    make = partial(_evaluate, model, dataset, address, config, str(stepper.store.root), runner)
    return stepper.run(f"evaluation-{name}", key, [("model", model), ("dataset", dataset)], make)


def _evaluate(
    model: Artifact,
    dataset: Artifact,
    address: str,
    config: EvaluationStep,
    location: str,
    runner: Runner,
    work: Work,
) -> Outcome:
    num_questions = len(read_evaluation(dataset.path))
    shards = shards_of(model.digest, dataset.digest, num_questions, config.shard_questions, config.max_new_tokens)
    resources = TaskResources(cpus=config.cpus_per_worker, gpus=config.gpus_per_worker)
    answered = answer_shards(location, shards, work.scratch, runner, resources, work.progress.update)
    write_predictions(work.path, answered)
    metrics = model_metrics(model, dataset, answered) | _ttft_ms(address, model, dataset)
    return Outcome(evaluation_spec(model, dataset, scores_of(answered)), metrics)


def _ttft_ms(address: str, model: Artifact, dataset: Artifact) -> dict[str, float]:
    """Time to the first token as a client sees it, one request at a time, after one to warm up."""
    records = read_evaluation(dataset.path)[: NUM_TIMED + 1]
    times = []
    with EdgeVlmClient(address) as client:
        client.load(model.digest)
        for record in records:
            image = None if record.image is None else record.image.read_bytes()
            times.append(1000 * client.generate(model.digest, image, record.turns[0].question, 1).ttft_s)
    timed = sorted(times[1:] or times)
    return {
        "ttft_ms_median": statistics.median(timed),
        "ttft_ms_p90": timed[min(len(timed) - 1, int(0.9 * len(timed)))],
    }
