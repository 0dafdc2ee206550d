"""Streams of the artifact service against a raw loopback socket that also reads from and writes to a disk.

    python services/benchmarks/transfers.py [--size-mb 512] [--rounds 5] [--folder DIR]

Each round runs, one after another: a process that reads a file and sends it through a TCP socket to this one, which
writes it to a file (the reference); WriteFile and ReadFile of the same file through a server process of their own, with
digests and flushes off and on. Off: no SHA-256 of the file and no fsync; CRC-32C of each chunk is on always. Pushing
sends a chunk when the one before was answered. One line a measurement; ratios are medians of the rounds' own ratios.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vlmpress.artifact import Artifact, create
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.clients import ArtifactClient

MB = 1_000_000
CHUNK_BYTES = 1 << 20
SENDER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as to, open(sys.argv[2], "rb", buffering=0) as file:
    while data := file.read(1 << 20):
        to.sendall(data)
"""
SERVER = """
import asyncio, sys
from pathlib import Path
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store import local, parts, uploads
if sys.argv[2] == "off":
    parts.digest_file = lambda path: parts.expected_sha256
    parts.flush = uploads.flush_tree = local.flush = lambda path: None
    finish = parts.PartFile._finish
    def trusting(self):
        parts.expected_sha256 = self._file.sha256
        finish(self)
    parts.PartFile._finish = trusting
async def main():
    server = Server(ServerConfig(listen="127.0.0.1:0", store=Path(sys.argv[1]), services=("artifact",)))
    await server.start()
    print(server.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1)
asyncio.run(main())
"""


def raw_mb_per_s(source: Path, target: Path) -> float:
    """A file through a loopback socket into another file."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sender = subprocess.Popen([sys.executable, "-c", SENDER, str(port), str(source)])
        connection, _ = listener.accept()
        start_s = time.perf_counter()
        buffer = bytearray(CHUNK_BYTES)
        with connection, target.open("wb", buffering=0) as file:
            while size := connection.recv_into(buffer):
                file.write(memoryview(buffer)[:size])
        seconds = time.perf_counter() - start_s
        sender.wait()
    return source.stat().st_size / MB / seconds


def streams_mb_per_s(artifact: Artifact, folder: Path, checks: str) -> dict[str, float]:
    """The same file through WriteFile into a server's store, and back through ReadFile into another file."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-c", SERVER, str(folder), checks]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        with ArtifactClient(server.stdout.readline().strip()) as client:
            client.tags()  # connects
            start_s = time.perf_counter()
            client.push(artifact.path)
            write_s = time.perf_counter() - start_s
            start_s = time.perf_counter()
            with (folder / "back").open("wb", buffering=0) as file:
                for data in client.read_file(artifact.digest, "file"):
                    file.write(data)
                if checks == "on":
                    os.fsync(file.fileno())
            read_s = time.perf_counter() - start_s
    finally:
        server.stdin.close()
        server.wait()
    size_mb = artifact.size_bytes / MB
    return {"write": size_mb / write_s, "read": size_mb / read_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        with create(root / "artifact") as draft, (draft.path / "file").open("wb") as file:
            for _ in range(options.size_mb * MB // CHUNK_BYTES):
                file.write(os.urandom(CHUNK_BYTES))
            file.flush()
            artifact = draft.commit(artifact_pb2.Log(source="benchmark"), producer=("transfers", "1"))
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            raw = raw_mb_per_s(artifact.path / "file", root / "raw")
            found.setdefault("raw", []).append(raw)
            for checks in ("off", "on"):
                for what, mb_per_s in streams_mb_per_s(artifact, root / "store", checks).items():
                    found.setdefault(f"{what}, checks {checks}", []).append(mb_per_s)
        for what, rates in found.items():
            ratios = [rate / raw for rate, raw in zip(rates, found["raw"], strict=True)]
            line = {
                "what": what,
                "mb_per_s": [round(rate) for rate in rates],
                "ratio": round(statistics.median(ratios), 2),
            }
            print(json.dumps(line))


if __name__ == "__main__":
    main()
