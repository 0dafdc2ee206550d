"""The report of a sweep: its points, which of them nothing beats, and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from matplotlib.figure import Figure

from vlmpress.artifact import Artifact, Draft
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.pipeline.pareto.front import front
from vlmpress_services.pipeline.plots import svg_text
from vlmpress_services.producer import producer

FIELDS, TABLE, PICTURE = "pareto.json", "pareto.md", "pareto.svg"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One model of a sweep.

    Attributes:
        model: Name of its step, for example "edge_packed".
        variant: What differs from the base where the model comes from; the first variant that has it.
        digest: Of the model.
        evaluation: Digest of its evaluation.
        accuracy: Exact match, 0 to 1.
        weight_bytes: Of its weight files.
        prefill_gmacs: Mean work of a prefill, 1e9 multiply-accumulates.
        visual_tokens: Mean number that the language model sees.
    """

    model: str
    variant: str
    digest: str
    evaluation: str
    accuracy: float
    weight_bytes: float
    prefill_gmacs: float
    visual_tokens: float

    @classmethod
    def of(cls, model: str, variant: str, evaluation: Artifact) -> Self:
        """The point that an evaluation measured."""
        manifest = evaluation.manifest
        return cls(
            model=model,
            variant=variant,
            digest=manifest.evaluation.model,
            evaluation=evaluation.digest,
            accuracy=manifest.evaluation.score.accuracy,
            weight_bytes=manifest.metrics["weight_bytes"],
            prefill_gmacs=manifest.metrics["prefill_gmacs"],
            visual_tokens=manifest.metrics["visual_tokens_mean"],
        )


def on_front(points: Sequence[Point]) -> list[bool]:
    """Whether nothing beats each point in bytes, work and accuracy together."""
    return front([(point.weight_bytes, point.prefill_gmacs, -point.accuracy) for point in points])


def write_report(draft: Draft, points: Sequence[Point]) -> Artifact:
    """Fills and commits a draft; its parents are the evaluations."""
    flags = on_front(points)
    fields = [{**asdict(point), "on_front": flag} for point, flag in zip(points, flags, strict=True)]
    (draft.path / FIELDS).write_text(json.dumps({"points": fields}, indent=1) + "\n", encoding="utf-8")
    (draft.path / TABLE).write_text(_table(points, flags), encoding="utf-8")
    (draft.path / PICTURE).write_text(_picture(points, flags), encoding="utf-8")
    return draft.commit(
        artifact_pb2.Report(title="Pareto sweep"),
        producer=producer(),
        parents=[("evaluation", point.evaluation) for point in points],
    )


def _table(points: Sequence[Point], flags: Sequence[bool]) -> str:
    lines = [
        "| model | variant | accuracy | bytes | prefill GMACs | visual tokens | on the front |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {point.model} | {point.variant.replace('|', '/')} | {point.accuracy:.3f} | {point.weight_bytes:,.0f} "
        f"| {point.prefill_gmacs:.4f} | {point.visual_tokens:.1f} | {'yes' if flag else ''} |"
        for point, flag in zip(points, flags, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _picture(points: Sequence[Point], flags: Sequence[bool]) -> str:
    """Accuracy against bytes and against work; a line joins what nothing beats in the two that are drawn."""
    figure = Figure(figsize=(9.6, 3.8))
    for place, (label, costs) in enumerate(
        (
            ("weights (kB)", [point.weight_bytes / 1e3 for point in points]),
            ("work of a prefill (GMACs)", [point.prefill_gmacs for point in points]),
        ),
        1,
    ):
        axes = figure.add_subplot(1, 2, place)
        accuracies = [point.accuracy for point in points]
        for name in dict.fromkeys(point.model for point in points):
            rows = [number for number, point in enumerate(points) if point.model == name]
            axes.scatter([costs[row] for row in rows], [accuracies[row] for row in rows], label=name, s=18, zorder=3)
        best = front([(cost, -accuracy) for cost, accuracy in zip(costs, accuracies, strict=True)])
        line = sorted((costs[row], accuracies[row]) for row, flag in enumerate(best) if flag)
        axes.plot(*zip(*line, strict=True), color="0.6", drawstyle="steps-post", zorder=1)
        ringed = [row for row, flag in enumerate(flags) if flag]
        axes.scatter(
            [costs[row] for row in ringed],
            [accuracies[row] for row in ringed],
            s=80,
            facecolors="none",
            edgecolors="black",
            label="nothing beats it in all three" if place == 1 else None,
        )
        axes.set(xlabel=label, ylabel="accuracy" if place == 1 else "")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.tight_layout()
    return svg_text(figure)
