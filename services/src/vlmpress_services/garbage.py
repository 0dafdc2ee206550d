"""What garbage collection must leave beside tagged artifacts: what jobs and steps of a main job still need."""

import json
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message

from vlmpress_services.jobs.table import ENDED, JobTable
from vlmpress_services.store.names import is_digest


def roots(store_root: Path) -> set[str]:
    """Digests that the jobs and steps kept beside a store name; other text among them names no artifact."""
    return {*_job_digests(store_root), *_step_digests(store_root)}


def _job_digests(store_root: Path) -> Iterator[str]:
    if not (store_root / "jobs").is_dir():
        return
    for job in JobTable(store_root).jobs():
        # An ended job keeps what it made; one that has not ended, everything that its spec names too.
        ended = job.state in ENDED
        if ended:
            job.ClearField("spec")
        yield from _texts(job)


def digests_in(message: Message) -> set[str]:
    """Digests that a message names, at any depth."""
    return {text for text in _texts(message) if is_digest(text)}


def _texts(message: Message) -> Iterator[str]:
    """Every string in a message, at any depth."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                yield from _texts(item)
            elif isinstance(item, str):
                yield item


def _step_digests(store_root: Path) -> Iterator[str]:
    """Results of the steps of main jobs: a run's folder holds its store, a server's store holds its runs."""
    for path in (*store_root.parent.glob("steps/*.json"), *store_root.glob("runs/*/steps/*.json")):
        try:
            digest = json.loads(path.read_text(encoding="utf-8")).get("digest")
        except (OSError, ValueError, AttributeError):
            continue  # gone meanwhile, or cut by a power loss: the step is made again
        if isinstance(digest, str):
            yield digest
