"""Runs steps whose results are artifacts, and reuses what has not changed.

A step's key is the SHA-256 of everything it depends on: its name, its configuration, the digests of
its parents, the versions of the packages and the seed. `steps/<key>.json` beside the store says which
artifact it made; a run that was killed finds its finished steps there.
"""

import errno
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from vlmpress.artifact import Artifact, Draft, Spec, digest_bytes
from vlmpress.cli import Progress, progress
from vlmpress_services.errors import NotFoundError
from vlmpress_services.locking import locked
from vlmpress_services.producer import producer
from vlmpress_services.store.local import LocalStore

SAMPLE_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What a step took; `reused` when this run did not do it."""

    name: str
    digest: str
    seconds: float
    peak_rss_bytes: int
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What a step's function gets.

    Attributes:
        draft: The directory to fill.
        scratch: A folder of this step that survives a kill, for checkpoints; removed when the step ends.
        progress: To be told how far the step is.
    """

    draft: Draft
    scratch: Path
    progress: Progress

    @property
    def path(self) -> Path:
        """The directory to fill."""
        return self.draft.path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step's function says of what it made."""

    spec: Spec
    metrics: Mapping[str, float]


class Stepper:
    """Runs the steps of one run.

    Args:
        out: Folder of the run.
        seed: Of everything that is drawn.
        versions: Of what makes the steps.
        on_step: Called with a step's name before it is made or found.
    """

    def __init__(
        self, out: Path, seed: int, versions: Mapping[str, str], on_step: Callable[[str], None] = lambda _: None
    ) -> None:
        self._on_step = on_step
        self.store = LocalStore(out / "store")
        self.records: list[StepRecord] = []
        self._done = out / "steps"
        self._scratch = out / "scratch"
        self._seed = seed
        self._versions = dict(versions)

    def run(
        self, name: str, config: Any, parents: Sequence[tuple[str, Artifact]], make: Callable[[Work], Outcome]
    ) -> Artifact:
        """The step's artifact, made now or found.

        Args:
            name: Tag of the artifact.
            config: What the result depends on besides the parents; JSON-able, paths as text.
            parents: (role, artifact) of what it is made from.
            make: Fills `work.path`; called only when the key is not known.
        """
        self._on_step(name)
        key = self._key(name, config, parents)
        # Several processes may want the same step: one makes it, the others wait and find it.
        with locked(self._done / f"{key}.lock", math.inf):
            known = self._find(key)
            if known is not None:
                self.records.append(known)
                self.store.tag(name, known.digest)
                return self.store.resolve(known.digest)
            return self._make(key, name, parents, make)

    def _make(
        self, key: str, name: str, parents: Sequence[tuple[str, Artifact]], make: Callable[[Work], Outcome]
    ) -> Artifact:
        scratch = self._scratch / key
        scratch.mkdir(parents=True, exist_ok=True)
        start_s = time.monotonic()
        with _named_place(self.store.root), progress(name) as shown, peak_memory() as peak, self.store.draft() as draft:
            outcome = make(Work(draft, scratch, shown))
            artifact = draft.commit(
                outcome.spec,
                producer=producer(),
                parents=[(role, parent.digest) for role, parent in parents],
                metrics=outcome.metrics,
            )
        record = StepRecord(name, artifact.digest, time.monotonic() - start_s, peak())
        self._remember(key, record)
        self.records.append(record)
        self.store.tag(name, artifact.digest)
        shutil.rmtree(scratch, ignore_errors=True)
        return artifact

    def _key(self, name: str, config: Any, parents: Sequence[tuple[str, Artifact]]) -> str:
        depends = {
            "name": name,
            "config": config,
            "parents": [[role, parent.digest] for role, parent in parents],
            "versions": self._versions,
            "seed": self._seed,
        }
        return digest_bytes(json.dumps(depends, sort_keys=True, default=str).encode())

    def _find(self, key: str) -> StepRecord | None:
        try:
            record = StepRecord(**json.loads((self._done / f"{key}.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None  # never made, or the record was cut by a power loss: made again
        try:
            self.store.verify(record.digest)
        except NotFoundError:
            return None
        return replace(record, reused=True)

    def _remember(self, key: str, record: StepRecord) -> None:
        self._done.mkdir(parents=True, exist_ok=True)
        temporary = self._done / f".{key}.tmp"
        temporary.write_text(json.dumps(asdict(record), sort_keys=True), encoding="utf-8")
        temporary.replace(self._done / f"{key}.json")


@contextmanager
def _named_place(folder: Path) -> Iterator[None]:
    """Libraries that write through an open file report a full disk without a name; the user needs one."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Samples the resident bytes of this process and its children; the function given tells the peak."""
    stop = threading.Event()
    peak = _tree_rss_bytes()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(SAMPLE_INTERVAL_S):
            peak = max(peak, _tree_rss_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak
    finally:
        stop.set()
        thread.join()


def _tree_rss_bytes() -> int:
    own = psutil.Process()
    total = 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # ended between the listing and the look
    return total
