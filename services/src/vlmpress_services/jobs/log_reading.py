"""What a job's workers printed, from any place on, whether the job still runs or has ended."""

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.jobs.logs import LEFT_OUT_PATTERN, PART_BYTES, log_folder, parts
from vlmpress_services.jobs.table import ENDED
from vlmpress_services.store.interface import ArtifactStore

PIECE_BYTES = 64 << 10
MAX_NOTE_BYTES = 100


def read_log(store: ArtifactStore, job: pb.Job, attempt: int, offset: int) -> tuple[int, bytes]:
    """Bytes that an attempt printed.

    Args:
        store: Of the job.
        job: As it was just now: one that ends meanwhile may seem to have printed nothing, until it is asked for again.
        attempt: Counted from 1.
        offset: First byte wanted.

    Returns:
        Where the bytes begin, later than `offset` where the middle of the log is not kept; and the bytes, at most
        `PIECE_BYTES`, none when nothing is there yet.
    """
    if job.log:
        return _from_artifact(store, job.log, f"attempt-{attempt}.log", offset)
    for number, path in parts(log_folder(store.root, job.job_id), attempt):
        start = max(offset, number * PART_BYTES)
        if start >= (number + 1) * PART_BYTES:
            continue
        try:
            with path.open("rb") as file:
                file.seek(start - number * PART_BYTES)
                data = file.read(PIECE_BYTES)
        except FileNotFoundError:
            continue  # left out meanwhile, or an artifact by now
        if data:
            return start, data
    return offset, b""


def is_complete(job: pb.Job) -> bool:
    """Whether a job's workers print no more: it has ended, and those of a cancelled job are gone."""
    dying = job.state == pb.JOB_STATE_CANCELLED and job.attempt > 0 and not job.log
    return job.state in ENDED and not dying


def _from_artifact(store: ArtifactStore, digest: str, path: str, offset: int) -> tuple[int, bytes]:
    size = {file.path: file.size_bytes for file in store.find(digest).manifest.files}.get(path, 0)
    num_note_bytes, num_left_out = _note(store, digest, path, size)
    place, end = offset, PART_BYTES if num_left_out else size
    if num_left_out and offset >= PART_BYTES:
        offset = max(offset, PART_BYTES + num_left_out)
        place, end = offset - num_left_out + num_note_bytes, size
    if place >= end:
        return offset, b""
    return offset, store.read(digest, path, place, min(PIECE_BYTES, end - place))


def _note(store: ArtifactStore, digest: str, path: str, size: int) -> tuple[int, int]:
    """Bytes of the note on what was left out, and how many were; zeros where nothing was."""
    if size <= PART_BYTES:
        return 0, 0
    found = LEFT_OUT_PATTERN.match(store.read(digest, path, PART_BYTES, min(MAX_NOTE_BYTES, size - PART_BYTES)))
    return (0, 0) if found is None else (len(found[0]), int(found[1]))
