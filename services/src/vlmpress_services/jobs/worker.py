"""The process that does one job: `python -m vlmpress_services.jobs.worker --store DIR --job ID`."""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

from vlmpress.artifact import ArtifactError
from vlmpress.cli import UserError
from vlmpress.data import DataError
from vlmpress_services.errors import INTERNAL_TEXT, PackageError, ServicesError
from vlmpress_services.jobs.progress import Details
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.jobs.work import do_work
from vlmpress_services.serving.process import call_at_stdin_end, claim_stdout
from vlmpress_services.store.local import LocalStore

REPORT_INTERVAL_S = 0.5
_EXPECTED = (ServicesError, ArtifactError, DataError, UserError, PackageError, OSError)

_log = logging.getLogger(__name__)


class JobEndedError(ServicesError):
    """Somebody else ended the job."""


def work(table: JobTable, store: LocalStore, job_id: str) -> None:
    """Does a pending job, unless another process is at it; its state says how it went."""
    with table.owned(job_id) as owned:
        if not owned or not table.begin(job_id):
            return
        job = table.get(job_id)
        report = _Reporter(table, job_id)
        try:
            result = do_work(job.spec, store, report)
            report.flush()
        except JobEndedError:
            return
        except Exception as error:
            _log.exception("job %s failed", job_id)
            # The text may say what the user can act on; what nobody raised on purpose stays in the log.
            message = str(error) if isinstance(error, _EXPECTED) else INTERNAL_TEXT
            table.fail(job_id, message.replace(str(store.root), "store"))
            return
        table.succeed(job_id, result)


class _Reporter:
    """Writes reports into the table, not more than one in each interval."""

    def __init__(self, table: JobTable, job_id: str) -> None:
        self._table, self._job_id = table, job_id
        self._waiting: tuple[float, str, Details | None] | None = None
        self._last_s = 0.0

    def __call__(self, progress: float, message: str, /, details: Details | None = None) -> None:
        self._waiting = (min(max(progress, 0.0), 1.0), message, details)
        if time.monotonic() - self._last_s >= REPORT_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Writes what still waits."""
        if self._waiting is None:
            return
        waiting, self._waiting, self._last_s = self._waiting, None, time.monotonic()
        if not self._table.report(self._job_id, *waiting):
            raise JobEndedError(f"job {self._job_id}: has ended")


def main() -> int:
    """Runs the worker; the job's state, not the exit code, tells how the job went."""
    parser = argparse.ArgumentParser(description="Does one job of a store.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--job", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    claim_stdout()
    # Unwinds what is open: temporary folders, a server of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The server holds the other end; when it dies, so does its work.
    call_at_stdin_end(lambda: os._exit(1))
    work(JobTable(arguments.store), LocalStore(arguments.store), arguments.job)
    # Nothing is open any more; an interpreter that ends would only print where it was.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
