"""The evaluation step: a model answers in shards and is scored; and how long a client of its server waits."""

import statistics
from collections.abc import Callable, Mapping

from vlmpress.artifact import Artifact
from vlmpress_services.clients import EdgeVlmClient
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.evaluating.evaluation import Questions, evaluate
from vlmpress_services.pipeline.config import EvaluationStep
from vlmpress_services.pipeline.stepping import Outcome, Stepper, Work
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import Runner

NUM_TIMED = 60


def make_evaluation(
    name: str,
    model: Artifact,
    dataset: Artifact,
    config: EvaluationStep,
    stepper: Stepper,
    runner: Runner,
    more: Callable[[], Mapping[str, float]] = dict,
) -> Artifact:
    """The evaluation of one model, made now or found.

    Args:
        name: Of the step.
        model: What answers.
        dataset: Its evaluation questions are asked.
        config: Only what answers depend on is part of the step's key.
        stepper: Of the run.
        runner: Does the shards.
        more: Further metrics, measured when all is answered.
    """
    key = {"shard_questions": config.shard_questions, "max_new_tokens": config.max_new_tokens}
    resources = TaskResources(cpus=config.cpus_per_worker, gpus=config.gpus_per_worker)

    def make(work: Work) -> Outcome:
        questions = Questions(model=model, dataset=dataset, **key)
        location, on_progress = str(stepper.store.root), work.progress.update
        found = evaluate(questions, location, work.scratch, work.path, runner, resources, on_progress)
        return Outcome(found.spec, {**found.metrics, **more()})

    return stepper.run(name, key, [("model", model), ("dataset", dataset)], make)


def ttft_ms(address: str, model: Artifact, dataset: Artifact) -> dict[str, float]:
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
