"""Reads and writes a server's artifacts."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from vlmpress.artifact import Artifact, read
from vlmpress.artifact.v1 import artifact_pb2, artifact_service_pb2
from vlmpress_services.clients import artifact_calls as calls
from vlmpress_services.clients.artifact_files import Chunks, FileCursor, Sending, check_answer
from vlmpress_services.clients.channel import Client, typed_errors
from vlmpress_services.clients.retries import Breaks
from vlmpress_services.errors import ServiceError
from vlmpress_services.store.checksum import crc32c
from vlmpress_services.store.interface import ArtifactStore, Described
from vlmpress_services.store.names import is_digest

OnProgress = Callable[[int, int], object]
"""Told bytes done and bytes in all."""


def quiet(done: int, total: int) -> None:
    """Shows nothing."""


class ArtifactClient(Client):
    """Reads, writes, names and deletes a server's artifacts."""

    def manifest(self, ref: str) -> tuple[str, artifact_pb2.Manifest]:
        """Digest and manifest of an artifact; raises ServiceError."""
        return self._call(calls.manifest_call(ref))

    def list(self, kind: str = "") -> list[artifact_service_pb2.ArtifactSummary]:
        """One line an artifact; raises ServiceError."""
        return self._pages(lambda token: calls.list_call(kind, token))

    def read_file(self, ref: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset on, piece by piece, each checked; goes on where a connection broke.

        Raises:
            ServiceError: There is no such file, a piece was changed on its way, or the server stays away.
        """
        # A tag may move between two connections.
        digest = ref if is_digest(ref) else self.manifest(ref)[0]
        yield from self._resume(FileCursor(digest, path, offset).call)

    def verify(self, ref: str) -> str:
        """Checks every byte on the server; the fault in one line, empty when there is none; raises ServiceError."""
        return self._call(calls.verify_call(ref))

    def tags(self) -> dict[str, str]:
        """Digest of every tag, by name; raises ServiceError."""
        return self._call(calls.tags_call())

    def tag(self, name: str, digest: str, expected: str | None = None) -> None:
        """Points a tag at an artifact.

        Args:
            name: Of the tag.
            digest: Of the artifact.
            expected: Digest that the tag must point at now, "" for none; None: whatever it is.

        Raises:
            ServiceError: ABORTED when the tag points elsewhere, which `metadata["found"]` names.
        """
        self._call(calls.tag_call(name, digest, expected))

    def untag(self, name: str, expected: str | None = None) -> bool:
        """Removes a tag, False when there is none; `expected` and errors as `tag`."""
        return self._call(calls.untag_call(name, expected))

    def collect_garbage(
        self, min_age_s: float | None = None, *, dry_run: bool = False
    ) -> Sequence[artifact_service_pb2.ArtifactSummary]:
        """What the server deleted, or would; nothing younger than `min_age_s` (None: a day); raises ServiceError."""
        return self._call(calls.garbage_call(min_age_s, dry_run))

    def push(self, directory: Path, tag: str = "", on_progress: OnProgress = quiet) -> str:
        """Writes an artifact directory to the server and gives its digest; what is there is not sent again.

        Broken connections are taken up again where they broke: no more than 1 MiB is sent twice for each.

        Args:
            directory: The artifact.
            tag: To point at it once it is whole; empty: none.
            on_progress: Told bytes done and bytes in all.

        Raises:
            ArtifactError: No artifact is there.
            ServiceError: A file is not as its manifest says, or the server refuses it or stays away.
        """
        artifact = read(directory)
        sending, breaks = Sending(artifact), Breaks()
        while True:
            try:
                answer = self._call(sending.start())
                for file, offset in sending.missing(answer):
                    for end in self._write(artifact, file, offset):
                        breaks.reset()
                        on_progress(sending.done(file, end), artifact.size_bytes)
                self._call(calls.commit_call(artifact.digest, tag))
                return artifact.digest
            except ServiceError as error:
                pause_s = sending.pause_s(error, breaks)
            time.sleep(pause_s)

    def pull(self, ref: str, store: ArtifactStore, tag: str = "", on_progress: OnProgress = quiet) -> Described:
        """Reads an artifact into a store; what an earlier try left there is not read again.

        Args:
            ref: Digest or tag on the server.
            store: Where it goes; it is there whole or not at all.
            tag: To point at it in the store; empty: none.
            on_progress: Told bytes done and bytes in all.

        Raises:
            ServiceError: There is no such artifact, or the server stays away.
            ArtifactFaultError: A file is not as its manifest says.
        """
        digest, manifest = self.manifest(ref)
        _, files = store.start_write(check_answer(digest, manifest))
        done = sum(file.persisted_size for file in files or ())
        total = sum(file.size_bytes for file in manifest.files)
        for file, status in zip(manifest.files, files or (), strict=bool(files)):
            if status.persisted_size == file.size_bytes:
                continue
            offset = status.persisted_size
            with store.uploads.open(digest, file.path) as part:
                for data in self._resume(FileCursor(digest, file.path, offset).call):
                    offset = part.write(offset, data, crc32c(data))
                    done += len(data)
                    on_progress(done, total)
        artifact = store.commit_write(digest)
        if tag:
            store.tag(tag, digest)
        return artifact

    def _write(self, artifact: Artifact, file: artifact_pb2.File, offset: int) -> Generator[int, None, None]:
        """Sends a file from an offset on and gives what is persisted, chunk by chunk."""
        with Chunks(artifact, file, offset) as chunks, typed_errors():
            responses = self._stub(calls.write_file)(iter(chunks))
            try:
                for response in responses:
                    chunks.answered()
                    yield response.persisted_size
                chunks.check()
            finally:
                responses.cancel()
