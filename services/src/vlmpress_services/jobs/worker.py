"""The process that does one job: `python -m vlmpress_services.jobs.worker --store DIR --spec FILE`.

It knows nothing of jobs and their table: what it has to say goes out as lines (see `lines`), here and on a cluster.
"""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import EXPECTED, INTERNAL_TEXT
from vlmpress_services.jobs.lines import Speaker
from vlmpress_services.jobs.progress import Details
from vlmpress_services.jobs.work import do_work
from vlmpress_services.serving.process import call_at_stdin_end, claim_stdout
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.opening import open_store

REPORT_INTERVAL_S = 0.5

_log = logging.getLogger(__name__)


def work(spec: pb.JobSpec, store: ArtifactStore, speaker: Speaker) -> None:
    """Does a job's work and says how far it is and how it went."""
    report = _Reporter(speaker)
    try:
        result = do_work(spec, store, report)
        report.flush()
    except Exception as error:
        _log.exception("the job failed")
        # The text may say what the user can act on; what nobody raised on purpose stays in the log.
        message = str(error) if isinstance(error, (*EXPECTED, OSError)) else INTERNAL_TEXT
        speaker.fail(message.replace(str(store.root), "store"))
        return
    speaker.succeed(result)


class _Reporter:
    """Says reports, not more than one in each interval."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker
        self._waiting: tuple[float, str, Details | None] | None = None
        self._last_s = 0.0

    def __call__(self, progress: float, message: str, /, details: Details | None = None) -> None:
        self._waiting = (min(max(progress, 0.0), 1.0), message, details)
        if time.monotonic() - self._last_s >= REPORT_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Says what still waits."""
        if self._waiting is not None:
            waiting, self._waiting, self._last_s = self._waiting, None, time.monotonic()
            self._speaker.report(*waiting)


def main() -> int:
    """Runs the worker; what it says, not the exit code, tells how the job went."""
    parser = argparse.ArgumentParser(description="Does one job's work.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--spec", type=Path, required=True, help="a JobSpec in protobuf's binary form")
    parser.add_argument("--exit-with-stdin", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    speaker = Speaker(claim_stdout())
    # Unwinds what is open: temporary folders, a server of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if arguments.exit_with_stdin:
        # The server holds the other end; when it dies, so does its work.
        call_at_stdin_end(lambda: os._exit(1))
    work(pb.JobSpec.FromString(arguments.spec.read_bytes()), open_store(arguments.store), speaker)
    # Nothing is open any more; an interpreter that ends would only print where it was.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
