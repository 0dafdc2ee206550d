"""The process that does one job: `python -m vlmpress_services.job_worker --store DIR --job ID`."""

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
from vlmpress_services.job_progress import OnProgress
from vlmpress_services.job_work import do_work
from vlmpress_services.jobs import JobTable
from vlmpress_services.serving import call_at_stdin_end, claim_stdout
from vlmpress_services.store import LocalStore

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
        try:
            result = do_work(job.spec, store, _reporter(table, job_id))
        except JobEndedError:
            return
        except Exception as error:
            _log.exception("job %s failed", job_id)
            # The text may say what the user can act on; what nobody raised on purpose stays in the log.
            message = str(error) if isinstance(error, _EXPECTED) else INTERNAL_TEXT
            table.fail(job_id, message.replace(str(store.root), "store"))
            return
        table.succeed(job_id, result)


def _reporter(table: JobTable, job_id: str) -> OnProgress:
    last_s = 0.0

    def report(progress: float, message: str) -> None:
        nonlocal last_s
        if time.monotonic() - last_s < REPORT_INTERVAL_S:
            return
        last_s = time.monotonic()
        if not table.report(job_id, min(max(progress, 0.0), 1.0), message):
            raise JobEndedError(f"job {job_id}: has ended")

    return report


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
