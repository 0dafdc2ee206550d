"""The report: one JSON for machines, one Markdown and one self-contained HTML page for people."""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vlmpress.artifact import Artifact
from vlmpress_services.datasets import read_evaluation
from vlmpress_services.evaluating.predictions import read_predictions
from vlmpress_services.pipeline.plots import matched_layers_svg, size_accuracy_svg, tokens_svg
from vlmpress_services.pipeline.stepping import StepRecord

NUM_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Variant:
    """A model of the run with its evaluation."""

    name: str
    model: Artifact
    evaluation: Artifact


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a report says besides its variants."""

    seed: int
    command: str
    versions: dict[str, str]
    runner: str
    steps: list[StepRecord]


def report_fields(dataset: Artifact, variants: list[Variant], facts: RunFacts) -> dict[str, Any]:
    """The content of report.json."""
    spec = dataset.manifest.dataset
    prior = {
        name.removeprefix("question_only_accuracy "): value
        for name, value in dataset.manifest.metrics.items()
        if name.startswith("question_only_accuracy ") and not name.endswith(" all")
    }
    return {
        "data": {
            "name": spec.name,
            "num_train": spec.num_train,
            "num_test": spec.num_test,
            "num_evaluated": len(read_evaluation(dataset.path)),
            "question_only_accuracy": spec.question_only_accuracy,
            "question_only_accuracy_by_type": prior,
            "artifact": dataset.digest,
        },
        "variants": [_variant_fields(variant) for variant in variants],
        "steps": [asdict(record) for record in facts.steps],
        "seed": facts.seed,
        "runner": facts.runner,
        "versions": facts.versions,
        "command": facts.command,
    }


def _variant_fields(variant: Variant) -> dict[str, Any]:
    spec, metrics = variant.evaluation.manifest.evaluation, variant.evaluation.manifest.metrics
    return {
        "name": variant.name,
        "accuracy": spec.score.accuracy,
        "accuracy_by_type": {name: score.accuracy for name, score in sorted(spec.score_by_type.items())},
        "params": int(metrics["params"]),
        "bytes_on_disk": int(metrics["weight_bytes"]),
        "visual_tokens_mean": metrics["visual_tokens_mean"],
        "prefill_gmacs": metrics["prefill_gmacs"],
        "ttft_ms": {"median": metrics["ttft_ms_median"], "p90": metrics["ttft_ms_p90"]},
        "artifact": variant.model.digest,
    }


def write_report(
    folder: Path,
    fields: dict[str, Any],
    dataset: Artifact,
    variants: list[Variant],
    matches: dict[str, list[list[int]]],
) -> None:
    """Writes report.json, report.md and report.html.

    Args:
        folder: Where to.
        fields: As `report_fields` gave them.
        dataset: For the sample images.
        variants: For their answers.
        matches: Matched-layer counts of the distillation: {"first": [t_s][t_l], "last": [t_s][t_l]}.
    """
    (folder / "report.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("vlmpress_services.pipeline"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    samples = _samples(dataset, variants)
    plots = {
        "size": size_accuracy_svg(fields["variants"]),
        "tokens": tokens_svg(fields["variants"]),
        "matches": matched_layers_svg(matches["first"], matches["last"]),
    }
    for name in ("report.md", "report.html"):
        template = environment.get_template(f"{name}.j2")
        text = template.render(report=fields, samples=samples, plots=plots, matches=matches)
        (folder / name).write_text(text, encoding="utf-8")


def _samples(dataset: Artifact, variants: list[Variant]) -> list[dict[str, Any]]:
    """Questions about different images: those the variants disagree on first, then the others in order."""
    records = read_evaluation(dataset.path)
    answers = {variant.name: read_predictions(variant.evaluation) for variant in variants}
    first = next(iter(answers.values()))

    def agreement(index: int) -> int:
        return -len({rows[index].answer for rows in answers.values()})

    chosen: list[dict[str, Any]] = []
    seen: set[Path | None] = set()
    for index in sorted(range(len(first)), key=lambda i: (agreement(i), i)):
        image = records[index].image
        if image in seen or len(chosen) == NUM_SAMPLES:
            continue
        seen.add(image)
        chosen.append(
            {
                "question": first[index].question,
                "expected": first[index].expected,
                "image": None if image is None else base64.b64encode(image.read_bytes()).decode("ascii"),
                "answers": {name: rows[index].answer for name, rows in answers.items()},
            }
        )
    return chosen
