"""Reads a server's artifacts."""

from collections.abc import Iterator
from typing import Any

from vlmpress.artifact.v1 import artifact_pb2, artifact_service_pb2, artifact_service_pb2_grpc
from vlmpress_services.clients.channel import LOAD_TIMEOUT_S, Client, typed_errors


class ArtifactClient(Client):
    """Reads a server's artifacts."""

    def manifest(self, ref: str) -> tuple[str, artifact_pb2.Manifest]:
        """Digest and manifest of an artifact; raises ServiceError."""
        request = artifact_service_pb2.GetManifestRequest(artifact=ref)
        with typed_errors():
            response = self._artifact_stub().GetManifest(request, timeout=self.timeout_s)
        return response.digest, response.manifest

    def list(self, kind: str = "") -> list[artifact_service_pb2.ArtifactSummary]:
        """One line an artifact; raises ServiceError."""
        request = artifact_service_pb2.ListArtifactsRequest(kind=kind)
        with typed_errors():
            return list(self._artifact_stub().ListArtifacts(request, timeout=self.timeout_s).artifacts)

    def read_file(self, ref: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset on, piece by piece; raises ServiceError."""
        request = artifact_service_pb2.ReadFileRequest(artifact=ref, path=path, offset=offset)
        with typed_errors():
            for response in self._artifact_stub().ReadFile(request, timeout=self.timeout_s):
                yield response.data

    def verify(self, ref: str) -> str:
        """Checks every byte on the server; the fault in one line, empty when there is none; raises ServiceError."""
        request = artifact_service_pb2.VerifyArtifactRequest(artifact=ref)
        with typed_errors():
            return str(self._artifact_stub().VerifyArtifact(request, timeout=LOAD_TIMEOUT_S).fault)

    def _artifact_stub(self) -> Any:
        return self._stub(artifact_service_pb2_grpc.ArtifactServiceStub)
