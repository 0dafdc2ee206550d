"""A chunk's request as the client encodes it is the message that protobuf would write."""

import os
from pathlib import Path

import pytest

from vlmpress.artifact import ArtifactFaultError, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.artifact.v1.artifact_service_pb2 import WriteFileRequest
from vlmpress_services.clients.artifact_files import CHUNK_BYTES, chunk_requests
from vlmpress_services.store.checksum import crc32c


@pytest.mark.parametrize("size", [1, 127, 128, 16384, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 130])
@pytest.mark.parametrize("offset", [0, 1])
def test_chunks(tmp_path: Path, size: int, offset: int) -> None:
    data = os.urandom(size)
    with create(tmp_path / "made") as draft:
        (draft.path / "file").write_bytes(data)
        artifact = draft.commit(artifact_pb2.Log(source="test"), producer=("test", "0"))
    (file,) = artifact.manifest.files
    expected = []
    for start in range(offset, size, CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES]
        expected.append(WriteFileRequest(offset=start, data=chunk, crc32c=crc32c(chunk)))
    if expected:
        expected[0].digest, expected[0].path = artifact.digest, "file"
    assert [WriteFileRequest.FromString(each) for each in chunk_requests(artifact, file, offset)] == expected
    (artifact.path / "file").write_bytes(b"")
    if expected:
        with pytest.raises(ArtifactFaultError, match=f"expected {size} bytes, got {offset}"):
            list(chunk_requests(artifact, file, offset))
