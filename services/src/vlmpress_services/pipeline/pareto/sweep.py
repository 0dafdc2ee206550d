"""Makes every variant of a sweep, measures each model once, and reports."""

from collections.abc import Sequence
from dataclasses import replace

from vlmpress.artifact import Artifact
from vlmpress_services.pipeline.config import RunConfig
from vlmpress_services.pipeline.evaluation import make_evaluation
from vlmpress_services.pipeline.main_job import OnShare, quiet_torch
from vlmpress_services.pipeline.models import Models, make_data, versions
from vlmpress_services.pipeline.pareto.config import ParetoConfig, Variant, variants_of
from vlmpress_services.pipeline.pareto.report import Point, write_report
from vlmpress_services.pipeline.stepping import Stepper
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.opening import open_runner
from vlmpress_services.workers.runners import LocalRunner, Runner

MAKING = 0.8
"""Share of the work that making the variants is taken for; the rest is measuring."""


def sweep(config: ParetoConfig, place: str, on_progress: OnShare) -> Artifact:
    """Runs a sweep into the folder `out` of its base and gives its report; what an earlier one made is found again.

    Args:
        config: What to vary.
        place: Where the configuration comes from, for errors.
        on_progress: Told the share of the work that is done, and what was done last.

    Raises:
        UserError: A field of an axis does not exist, a value cannot be right, or there are too many variants.
    """
    variants = variants_of(config, place)
    base = variants[0].config
    quiet_torch()
    stepper = _stepper(base)
    for variant in variants:
        make_data(variant.config, _stepper(variant.config))
    resources = TaskResources(cpus=config.cpus_per_worker, gpus=config.gpus_per_worker)
    with open_runner(base.runner) as runner:
        made = _make(variants, config.measure, runner, resources, on_progress)
        points = _measured(variants, made, stepper, runner, on_progress)
    with stepper.store.draft() as draft:
        artifact = write_report(draft, points)
    stepper.store.tag("pareto", artifact.digest)
    return artifact


def make_variant(config: RunConfig, measure: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Digests of model and dataset by the model's name; runs wherever a runner puts it, and may be done again.

    Args:
        config: Of the variant; its `out` is where every worker finds it.
        measure: Names of the models wanted.
    """
    quiet_torch()
    stepper = _stepper(config)
    models = Models(config, make_data(config, stepper), stepper, LocalRunner())
    return {name: (models.named(name).digest, models.dataset.digest) for name in measure}


def _stepper(config: RunConfig) -> Stepper:
    return Stepper(config.out.resolve(), config.seed, versions())


def _make(
    variants: Sequence[Variant],
    measure: Sequence[str],
    runner: Runner,
    resources: TaskResources,
    on_progress: OnShare,
) -> list[dict[str, tuple[str, str]]]:
    """Every variant's models, in the variants' order."""
    calls = [(replace(variant.config, out=variant.config.out.resolve()), measure) for variant in variants]
    made: dict[int, dict[str, tuple[str, str]]] = {}
    # The first one alone: most of what the others need is made with it, and they would only wait.
    for first, several in ((0, calls[:1]), (1, calls[1:])):
        for index, models in runner.each(make_variant, several, resources):
            made[first + index] = models
            on_progress(MAKING * len(made) / len(variants), f"made: {variants[first + index].name}")
    return [made[index] for index in range(len(variants))]


def _measured(
    variants: Sequence[Variant],
    made: Sequence[dict[str, tuple[str, str]]],
    stepper: Stepper,
    runner: Runner,
    on_progress: OnShare,
) -> list[Point]:
    """One point a model; the first variant that has it names it."""
    points: dict[str, Point] = {}
    total = len({digest for models in made for digest, _ in models.values()})
    for variant, models in zip(variants, made, strict=True):
        for name, (digest, data) in models.items():
            if digest not in points:
                model, dataset = stepper.store.resolve(digest), stepper.store.resolve(data)
                step = f"evaluation-{digest[:16]}"
                evaluation = make_evaluation(step, model, dataset, variant.config.evaluation, stepper, runner)
                points[digest] = Point.of(name, variant.name, evaluation)
                share = MAKING + (1 - MAKING) * len(points) / total
                on_progress(share, f"measured: {name} of {variant.name}")
    return list(points.values())
