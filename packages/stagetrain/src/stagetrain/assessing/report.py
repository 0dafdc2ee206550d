"""An assessment for machines and for people."""

from dataclasses import asdict
from typing import Any

from stagetrain.assessing.attention import KINDS
from stagetrain.assessing.scoring import Score
from stagetrain.assessing.sweeping import Assessment, SettingResult


def assessment_to_json(assessment: Assessment) -> dict[str, Any]:
    """Everything an assessment holds, as JSON's own types."""
    return {
        "num_layers": assessment.num_layers,
        "visual_tokens": assessment.visual_tokens,
        "results": [_result(result) for result in assessment.results],
        "attention": [asdict(layer) for layer in assessment.attention],
    }


def assessment_table(assessment: Assessment) -> str:
    """Two tables: accuracy by setting, and attention by layer."""
    types = list(assessment.results[0].by_type)
    lines = [
        f"{assessment.results[0].score.num_questions} questions, {assessment.visual_tokens:g} visual tokens,"
        f" {assessment.num_layers} layers",
        "",
        f"{'compressor':<12}{'layer':>6}{'stride':>8}{'CR %':>9}{'kept %':>9}{'accuracy':>10}"
        + "".join(f"{name:>10}" for name in types),
    ]
    for result in assessment.results:
        setting = result.setting
        place = ("none", "-", "-") if setting is None else (setting.compressor, setting.layer, setting.stride)
        lines.append(
            f"{place[0]:<12}{place[1]:>6}{place[2]:>8}{result.cr_percent:>9.1f}{result.retained_percent:>9.1f}"
            + "".join(f"{score.accuracy:>10.4f}" for score in (result.score, *result.by_type.values()))
        )
    lines += ["", "attention of the token that brings forth the answer, in sum and for each token", ""]
    lines.append(f"{'layer':<12}" + "".join(f"{kind:>10}" for kind in KINDS) + "".join(f"{k:>11}" for k in KINDS))
    for layer in assessment.attention:
        sums = "".join(f"{layer.total[kind]:>10.4f}" for kind in KINDS)
        means = "".join(f"{'-' if (mean := layer.per_token[kind]) is None else f'{mean:.6f}':>11}" for kind in KINDS)
        lines.append(f"{layer.layer:<12}{sums}{means}")
    return "\n".join(lines)


def _result(result: SettingResult) -> dict[str, Any]:
    setting = result.setting
    return {
        "compressor": None if setting is None else setting.compressor,
        "layer": None if setting is None else setting.layer,
        "stride": None if setting is None else setting.stride,
        "cr_percent": result.cr_percent,
        "retained_percent": result.retained_percent,
        **_score(result.score),
        "by_type": {name: _score(score) for name, score in result.by_type.items()},
    }


def _score(score: Score) -> dict[str, Any]:
    return {"num_questions": score.num_questions, "accuracy": score.accuracy}
