"""Files on their way from and to a server: where they are, and the chunks that come next."""

import math
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Self

from vlmpress.artifact import Artifact, ArtifactFaultError, digest_bytes, to_json_bytes
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.artifact.v1 import artifact_service_pb2 as pb
from vlmpress_services.clients import artifact_calls as calls
from vlmpress_services.clients.call import Call
from vlmpress_services.clients.retries import Breaks
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.checksum import crc32c

# What is not answered yet is sent again after a break: never more than the contract's largest chunk, 1 MiB. In two
# halves, so that the next one is on its way while the server persists one.
CHUNK_BYTES, MAX_UNANSWERED = 1 << 19, 2


class FileCursor:
    """A place in a file of a server."""

    def __init__(self, digest: str, path: str, offset: int) -> None:
        self._digest = digest
        self._path = path
        self._offset = offset

    def call(self) -> Call[bytes]:
        """The call for the bytes after this place; reading its answer moves it."""
        request = pb.ReadFileRequest(artifact=self._digest, path=self._path, offset=self._offset)
        return Call(stub=calls.STUB, method="ReadFile", request=request, read=self._read, timeout_s=math.inf)

    def _read(self, response: pb.ReadFileResponse) -> bytes:
        if response.offset != self._offset or crc32c(response.data) != response.crc32c:
            raise ServiceError("DATA_LOSS", f"{self._path}: expected the bytes at {self._offset}, got changed ones")
        self._offset += len(response.data)
        return response.data


class Sending:
    """An artifact on its way to a server."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._persisted: dict[str, int] = {}
        self._goes_on = False

    def start(self) -> Call[pb.StartWriteResponse]:
        """The call that begins the write, or finds where it is."""
        return calls.start_call(to_json_bytes(self._artifact.manifest))

    def missing(self, answer: pb.StartWriteResponse) -> list[tuple[artifact_pb2.File, int]]:
        """Files that are still to be sent, and from where on, by the answer to `start`."""
        files = self._artifact.manifest.files
        self._persisted = {file.path: file.persisted_size for file in answer.files}
        if answer.already_there:
            self._persisted = {file.path: file.size_bytes for file in files}
        self._goes_on = any(0 < self._persisted.get(file.path, 0) < file.size_bytes for file in files)
        places = [(file, self._persisted.get(file.path, 0)) for file in files]
        return [(file, offset) for file, offset in places if offset < file.size_bytes]

    def done(self, file: artifact_pb2.File, end: int) -> int:
        """Bytes that the server has of the whole artifact, now that it has those of one file up to `end`."""
        self._persisted[file.path] = end
        return sum(self._persisted.values())

    def pause_s(self, error: ServiceError, breaks: Breaks) -> float:
        """Seconds to wait before the write goes on; raises the error where that is of no use."""
        # Another client sends the same, or this one's last connection lives on; or what an earlier connection left was
        # damaged since, and is sent again from 0.
        if error.code == "ABORTED" or (error.code == "DATA_LOSS" and self._goes_on):
            error = ServiceError("UNAVAILABLE", error.text, reason=error.reason, request_id=error.request_id)
        return breaks.pause_s(error)


class Chunks:
    """The chunks of a file from an offset on, each once those before it were answered; a context manager.

    No more than `MAX_UNANSWERED` are sent before they are answered: after a break that is what is sent twice.
    """

    def __init__(self, artifact: Artifact, file: artifact_pb2.File, offset: int) -> None:
        self._requests = chunk_requests(artifact, file, offset)
        self._may_send = threading.Semaphore(MAX_UNANSWERED)
        self._ended = False
        self._fault: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # gRPC reads requests in a thread of its own, which must not wait for an answer for ever.
        self._ended = True
        self._may_send.release()

    def answered(self) -> None:
        """The server has persisted a chunk: the next one may go."""
        self._may_send.release()

    def __iter__(self) -> Iterator[bytes]:
        try:
            for request in self._requests:
                self._may_send.acquire()
                if self._ended:
                    return
                yield request
        except (OSError, ArtifactFaultError) as error:
            self._fault = error

    def check(self) -> None:
        """Raises what kept a chunk from being read: an exception in gRPC's thread would be lost."""
        if self._fault is not None:
            raise self._fault


def chunk_requests(artifact: Artifact, file: artifact_pb2.File, offset: int) -> Iterator[bytes]:
    """The chunks of a file from an offset on, encoded; raises ArtifactFaultError when it ends too early."""
    digest, name = artifact.digest, file.path
    with (artifact.path / name).open("rb", buffering=0) as opened:
        opened.seek(offset)
        while offset < file.size_bytes:
            data = opened.read(min(CHUNK_BYTES, file.size_bytes - offset))
            if not data:
                raise ArtifactFaultError(f"{artifact.path / file.path}: expected {file.size_bytes} bytes, got {offset}")
            rest = pb.WriteFileRequest(digest=digest, path=name, offset=offset, crc32c=crc32c(data))
            # protobuf would copy the data three times, into memory that is new each time: half of what a push costs.
            yield b"".join((rest.SerializeToString(), _data_prefix(len(data)), data))
            offset += len(data)
            digest = name = ""


@lru_cache(maxsize=8)
def _data_prefix(size: int) -> bytes:
    """What an encoded WriteFileRequest has before `size` bytes of data; its fields may stand in any order."""
    return pb.WriteFileRequest(data=bytes(size)).SerializeToString()[:-size]


def check_answer(digest: str, manifest: artifact_pb2.Manifest) -> bytes:
    """A server's manifest as canonical JSON; raises ArtifactFaultError when its digest is not what the server says."""
    data = to_json_bytes(manifest)
    if digest_bytes(data) != digest:
        raise ArtifactFaultError(f"manifest.json: expected digest {digest}, got {digest_bytes(data)}")
    return data
