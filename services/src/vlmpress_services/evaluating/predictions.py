"""The answers that an evaluation artifact keeps: one JSON object a line."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from vlmpress.artifact import Artifact
from vlmpress_services.evaluating.shards import Answered

PREDICTIONS = "predictions.jsonl"


def write_predictions(folder: Path, answered: Iterable[Answered]) -> None:
    """Writes them into a draft."""
    lines = (json.dumps(asdict(one), sort_keys=True, ensure_ascii=False) for one in answered)
    (folder / PREDICTIONS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_predictions(artifact: Artifact) -> Sequence[Answered]:
    """In the order of the questions."""
    lines = (artifact.path / PREDICTIONS).read_text(encoding="utf-8").splitlines()
    return [Answered(**json.loads(line)) for line in lines]
