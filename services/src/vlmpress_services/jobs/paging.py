"""Lists of jobs, a page at a time."""

from collections.abc import Sequence

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.table import JobTable

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
# Below what a client takes by default.
MAX_PAGE_BYTES = 3 << 20


def page_of(
    table: JobTable, page_size: int, page_token: str, states: Sequence[pb.JobState]
) -> tuple[list[pb.Job], str]:
    """Jobs, newest first, and the token of the next page, empty on the last one.

    A page ends early before its messages grow beyond `MAX_PAGE_BYTES`. Jobs made meanwhile are on no later page.

    Raises:
        InvalidRequestError: A size, token or state that cannot be.
    """
    if page_size > MAX_PAGE_SIZE:
        raise InvalidRequestError(f"page_size: expected at most {MAX_PAGE_SIZE}, got {page_size}")
    for state in states:
        if state not in pb.JobState.values() or state == pb.JOB_STATE_UNSPECIFIED:
            raise InvalidRequestError(f"states: expected states a job can have, got {state}")
    size = page_size or DEFAULT_PAGE_SIZE
    found = table.numbered(states, below=_number(page_token), limit=size + 1)
    page: list[pb.Job] = []
    num_bytes = 0
    for index, (_, job) in enumerate(found):
        num_bytes += job.ByteSize()
        if index == size or (page and num_bytes > MAX_PAGE_BYTES):
            return page, str(found[index - 1][0])
        page.append(job)
    return page, ""


def _number(token: str) -> int | None:
    if not token:
        return None
    # SQLite's integers end at 2**63.
    if not (token.isascii() and token.isdigit() and len(token) <= 18):
        raise InvalidRequestError(f"page_token: expected one that ListJobs gave, got {token[:40]!r}")
    return int(token)
