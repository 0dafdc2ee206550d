"""A server as a child process, for as long as a block of code needs it."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vlmpress_services.errors import LaunchError

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0


@contextmanager
def served(
    store_root: Path,
    services: str = "all",
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    log_file: Path | None = None,
) -> Iterator[str]:
    """Starts `vlmpress serve` on a free loopback port and gives its address; stops it when the block ends.

    The server also ends by itself when this process dies, however it dies: it watches its standard input.

    Args:
        store_root: Root of the artifact store.
        services: "all" or a comma-separated list.
        options: Further options of `vlmpress serve`.
        environment: Variables set for the server beside this process's own.
        log_file: Where the server's log is appended; None: to this process's standard error.

    Raises:
        LaunchError: It ended, or said nothing within three minutes.
    """
    command = [sys.executable, "-P", "-m", "vlmpress_services.cli", "serve", "--listen", "127.0.0.1:0"]
    command += ["--store", str(store_root), "--services", services, "--exit-with-stdin", "--quiet", *options]
    with nullcontext() if log_file is None else log_file.open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield _address(child, time.monotonic() + START_TIMEOUT_S)
        finally:
            _stop(child)


def _address(child: "subprocess.Popen[bytes]", deadline_s: float) -> str:
    assert child.stdout is not None
    # Read byte-wise below the buffer: the line is short, and select sees only what the kernel holds.
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise LaunchError(f"server: expected an address within {START_TIMEOUT_S:g} s, got {line!r}")
        data = os.read(child.stdout.fileno(), 4096)
        if not data:
            raise LaunchError(f"server: expected an address, but it ended with exit code {child.wait()}")
        line += data
    try:
        return str(json.loads(line)["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"server: expected one line of JSON with an address, got {line!r}") from error


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
