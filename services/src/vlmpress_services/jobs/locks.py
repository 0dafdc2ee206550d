"""Who is at work on a job: a lock that the kernel drops with the last process that holds it."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from vlmpress_services.locking import take


class JobLock:
    """Held from `take` to `close`, and by every process that inherits `handle`, until that ends."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    @classmethod
    def take(cls, folder: Path, job_id: str) -> Self | None:
        """The job's lock, or None when somebody holds it."""
        handle = take(folder / f"{job_id}.lock")
        return None if handle is None else cls(handle)

    def name(self, process_id: int) -> None:
        """Writes a process's id into the file, for people who look for the process behind a job."""
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, f"{process_id}\n".encode(), 0)

    def close(self) -> None:
        """Gives the lock up."""
        os.close(self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
