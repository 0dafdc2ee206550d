"""Attempts of jobs on a Ray cluster, through its Jobs API: the server needs no cluster of its own, nor a node of one.

A submission's id is its attempt's name, so a server that starts again finds what an earlier one submitted, and nothing
is submitted twice.
"""

import asyncio
import logging
import os
import shlex
import tempfile
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from vlmpress_services.errors import ExtraMissingError, InvalidRequestError
from vlmpress_services.jobs.locks import JobLock
from vlmpress_services.jobs.places import Hear, Place
from vlmpress_services.jobs.table import Attempt

RETRY_INTERVAL_S = 2.0
TAIL_TIMEOUT_S = 600.0
MAX_UNREAD = 3
SPEC_FILE = "spec.binpb"
_NO_SUCH_JOB = "status code 404"

_log = logging.getLogger(__name__)


class _Log:
    """A submission's log, which the cluster always gives from its start."""

    def __init__(self, name: str, hear: Hear) -> None:
        self._name, self._hear = name, hear
        self._num_heard = 0

    async def follow(self, client: JobSubmissionClient) -> bool:
        """Passes on what is new until the submission ends; False when the connection did before."""
        skip = self._num_heard
        try:
            # A cluster that is cut off would be waited for without an end.
            async with asyncio.timeout(TAIL_TIMEOUT_S):
                async for text in client.tail_job_logs(self._name):
                    data = text.encode()
                    new, skip = data[skip:], max(0, skip - len(data))
                    if new:
                        self._num_heard += len(new)
                        await self._hear(new)
        except Exception as error:
            _log.warning("job %s: its log broke off (%r)", self._name, error)
            return False
        return True


class RayPlace(Place):
    """Submissions to one cluster, which must see the store's folder and have this distribution installed.

    Args:
        address: Of the cluster's Jobs API, for example "http://head:8265".
        store_root: The store's folder.

    Raises:
        InvalidRequestError: RAY_ADDRESS names another cluster; Ray would go there.
        ExtraMissingError: Ray's part for the Jobs API is not installed.
    """

    outlives_server = True

    def __init__(self, address: str, store_root: Path) -> None:
        for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            if os.environ.get(name, address) != address:
                raise InvalidRequestError(
                    f"job cluster: expected {name} to be unset or {address!r}, got {os.environ[name]!r}"
                )
        try:
            import aiohttp  # noqa: F401 - the client imports it late and says little when it is missing
        except ImportError as error:
            raise ExtraMissingError(
                f"job cluster: Ray's Jobs API is not installed ({error}); pip install 'vlmpress-services[ray-jobs]'"
            ) from error
        self._address, self._store_root = address, store_root
        self._client: JobSubmissionClient | None = None

    async def run(self, attempt: Attempt, lock: JobLock, hear: Hear) -> str:
        """Submits the attempt unless it was, and follows its log; while the cluster is away, waits for it."""
        log, known, num_unread = _Log(attempt.name, hear), False, 0
        while True:
            try:
                status = await asyncio.to_thread(self._status, attempt)
                if status is None and known:
                    return "the cluster no longer knows the submission"
                if status is None:
                    refusal = await asyncio.to_thread(self._submit, attempt)
                    if refusal:
                        return refusal
                    continue
                known = True
                read = await log.follow(await asyncio.to_thread(self._open))
                status = await asyncio.to_thread(self._status, attempt)
                if status is not None and status.is_terminal():
                    num_unread += not read
                    if read or num_unread == MAX_UNREAD:
                        return f"the submission ended as {status}" + ("" if read else ", and its log cannot be read")
            except Exception as error:
                _log.warning("job %s: the cluster at %s does not answer (%s)", attempt.name, self._address, error)
                self._client = None
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def stop(self, attempt: Attempt) -> None:
        """Asks the cluster to end the submission; one that is away is not waited for."""
        try:
            await asyncio.to_thread(lambda: self._open().stop_job(attempt.name))
        except Exception as error:
            if _NO_SUCH_JOB not in str(error):
                _log.warning("job %s: its submission cannot be stopped (%s)", attempt.name, error)

    def _open(self) -> JobSubmissionClient:
        if self._client is None:
            token = _token()
            headers = {"authorization": f"Bearer {token}"} if token else None
            self._client = JobSubmissionClient(self._address, headers=headers)
        return self._client

    def _status(self, attempt: Attempt) -> JobStatus | None:
        try:
            return self._open().get_job_status(attempt.name)
        except RuntimeError as error:
            if _NO_SUCH_JOB in str(error):
                return None
            raise

    def _submit(self, attempt: Attempt) -> str:
        """Why the cluster does not take the attempt; empty when it did."""
        command = ["python", "-P", "-m", "vlmpress_services.jobs.worker"]
        command += ["--store", str(self._store_root), "--spec", SPEC_FILE]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / SPEC_FILE).write_bytes(attempt.spec.SerializeToString())
            try:
                self._open().submit_job(
                    # Signals are for the worker, not for a shell around it.
                    entrypoint=f"exec {shlex.join(command)}",
                    submission_id=attempt.name,
                    runtime_env={"working_dir": folder},
                    metadata={"vlmpress_job": attempt.job_id},
                    entrypoint_num_cpus=1,
                )
            except RuntimeError as error:
                if self._status(attempt) is None:
                    return f"the cluster refused the submission: {' '.join(str(error).split())}"
        return ""


def _token() -> str:
    """The cluster's token, from where Ray's own commands take it; empty: none.

    Ray's client would send it only when Ray was told to before it was imported.
    """
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""
