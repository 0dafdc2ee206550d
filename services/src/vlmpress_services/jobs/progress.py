"""What a job says of how far it is."""

from collections.abc import Callable
from typing import Protocol

from vlmpress.job.v1 import job_pb2 as pb

# Share of the work done, 0 to 1, and a line on what is being done.
OnProgress = Callable[[float, str], None]


# The same in a job's own terms, by the name of its field in Job.
Details = pb.TrainProgress | pb.DistillProgress
DETAILS: dict[str, type[Details]] = {"train_progress": pb.TrainProgress, "distill_progress": pb.DistillProgress}


class Report(Protocol):
    """As `OnProgress`, from jobs that may know more."""

    def __call__(self, progress: float, message: str, /, details: Details | None = None) -> None:
        """Reports; raises when the job is to end."""


# As quantpack calls it: done, in all, name of what was just done.
OnStep = Callable[[int, int, str], None]


def weights_done(on_progress: OnProgress) -> OnStep:
    """Counts weights."""
    return lambda done, total, name: on_progress(done / max(total, 1), f"{done:,} of {total:,} weights: {name}")


def trials_done(on_progress: OnProgress) -> OnStep:
    """Counts the trials of a search; nobody knows how many there will be, so the share is of settled matrices."""
    num_trials = 0

    def report(done: int, total: int, note: str) -> None:
        nonlocal num_trials
        num_trials += 1
        on_progress(done / max(total, 1), f"trial {num_trials}, {done:,} of {total:,} matrices settled: {note}")

    return report


def settings_done(on_progress: OnProgress, num_settings: int, *, has_search: bool) -> OnStep:
    """Counts the settings of a sweep; a search, which comes last, is one step more."""
    num_steps, num_done = num_settings + has_search, 0
    search = trials_done(lambda share, note: on_progress((num_settings + share) / num_steps, note))

    def report(done: int, total: int, note: str) -> None:
        nonlocal num_done
        if num_done == num_settings:
            search(done, total, note)
            return
        num_done += 1
        on_progress(num_done / num_steps, f"{num_done} of {num_settings} settings: {note}")

    return report
