"""One attempt from the first thing its worker says to its end in the table."""

import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from typing import Any

from vlmpress.artifact import ArtifactError
from vlmpress_services.errors import InvalidRequestError, NotFoundError
from vlmpress_services.jobs.lines import Listener, details_of
from vlmpress_services.jobs.logs import AttemptLog, commit_logs, drop_logs, log_folder
from vlmpress_services.jobs.table import Attempt, JobTable
from vlmpress_services.store.interface import ArtifactStore

# A server that follows a worker again hears all it ever said.
REPORT_INTERVAL_S = 0.25

_log = logging.getLogger(__name__)


class Attendance:
    """Hears a worker and writes the table; its methods touch disks, so call them in a thread.

    Args:
        table: Where the job is.
        store: Where results are and logs go.
        attempt: Whose output comes.
        max_attempts: How many attempts may be lost before the job fails.
    """

    def __init__(self, table: JobTable, store: ArtifactStore, attempt: Attempt, max_attempts: int) -> None:
        self._table, self._store, self._attempt = table, store, attempt
        self._max_attempts = max_attempts
        self._folder = log_folder(store.root, attempt.job_id)
        self._listener = Listener()
        self._log: AttemptLog | None = None
        self._closed = False
        self._waiting: Mapping[str, Any] | None = None
        self._last_s = 0.0
        self._lock = threading.Lock()
        self._result: str | None = None
        self._failure: str | None = None

    def hear(self, data: bytes) -> None:
        """Takes a piece of the worker's output; how far it is goes into the table once in each interval."""
        with self._lock:
            said, output = self._listener.feed(data)
            for message in said:
                self._result = message.get("result", self._result)
                self._failure = message.get("failed", self._failure)
                self._waiting = message if "progress" in message else self._waiting
            try:
                self._keep(output)
                if time.monotonic() - self._last_s >= REPORT_INTERVAL_S:
                    self._report()
            except (OSError, sqlite3.Error):
                # A job whose progress cannot be written may still end well.
                _log.exception("job %s: what its worker says cannot be kept", self._attempt.job_id)

    def end(self, how: str) -> None:
        """The worker is gone; `how` says in words in which way."""
        self._close()
        if self._failure is not None:
            self._finish(failure=self._failure)
        elif self._result is not None:
            self._finish(failure=self._fault(self._result))
        else:
            self.lose(how)

    def lose(self, how: str) -> None:
        """The worker is gone without a word: another attempt, unless too many went the same way."""
        self._close()
        num_lost = self._attempt.num_lost + 1
        if num_lost >= self._max_attempts:
            self._finish(failure=f"{how}; {num_lost} attempts were lost, and no more may be")
        else:
            self._table.lose(self._attempt, f"{how}; the job waits for another attempt")

    def give_back(self) -> None:
        """The server stops: the job waits for another one, or for the next start."""
        self._close()
        self._table.give_back(self._attempt, "the server stopped; the job goes on with the next one")

    def settle(self) -> None:
        """The job was cancelled and its worker is gone."""
        self._close()
        self._settle(self._commit())

    def _finish(self, failure: str) -> None:
        log = self._commit()
        if failure:
            done = self._table.fail(self._attempt, failure, log)
        else:
            assert self._result is not None
            done = self._table.succeed(self._attempt, self._result, log)
        if not done:
            # It was cancelled in this moment, or another server is at it.
            self._settle(log)
        elif log:
            drop_logs(self._folder)

    def _settle(self, log: str) -> None:
        # Without a log the job stays unsettled, and the next look tries again.
        if log and self._table.settle(self._attempt, log):
            drop_logs(self._folder)

    def _fault(self, digest: str) -> str:
        try:
            self._store.find(digest)
        except (NotFoundError, InvalidRequestError, ArtifactError) as error:
            return f"result: expected an artifact in the server's store, got none that can be read ({error})"
        return ""

    def _commit(self) -> str:
        try:
            return commit_logs(self._store, self._folder, self._attempt)
        except (OSError, ArtifactError):
            # A full disk must not keep a job from its end.
            _log.exception("job %s: its log is lost", self._attempt.job_id)
            return ""

    def _report(self) -> None:
        if self._waiting is not None:
            said, self._waiting, self._last_s = self._waiting, None, time.monotonic()
            self._table.report(self._attempt, said["progress"], said["message"], details_of(said))

    def _keep(self, output: bytes) -> None:
        if output and not self._closed:
            self._log = self._log or AttemptLog(self._folder, self._attempt.number)
            # Paths of the server are nobody else's business.
            self._log.write(output.replace(str(self._store.root).encode(), b"store"))

    def _close(self) -> None:
        with self._lock:
            try:
                self._keep(self._listener.rest())
                self._report()
            except (OSError, sqlite3.Error):
                _log.exception("job %s: the last that its worker said is lost", self._attempt.job_id)
            self._closed = True
            if self._log is not None:
                self._log.close()
                self._log = None
