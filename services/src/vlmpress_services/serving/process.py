"""A server process from its first line to its exit code."""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from vlmpress_services.serving.collecting import keep
from vlmpress_services.serving.logs import configure_logs
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.serving.tls import server_credentials
from vlmpress_services.serving.tokens import read_tokens
from vlmpress_services.store.opening import is_remote

# Between the end of the grace and that of the process.
LEAVING_S = 0.7
SWITCH_INTERVAL_S = 5e-4

_log = logging.getLogger(__name__)


def claim_stdout() -> int:
    """A private handle on standard output; from now on whatever a library prints goes to standard error."""
    sys.stdout.flush()
    handle = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return handle


def check(config: ServerConfig) -> None:
    """Reads the files that a configuration names, so that a fault shows before anything is served.

    Raises:
        InvalidRequestError: A file of tokens or certificates cannot be read.
    """
    if config.tls is not None:
        server_credentials(config.tls)
    if config.tokens is not None:
        read_tokens(config.tokens)


def serve(config: ServerConfig, *, exit_with_stdin: bool, quiet: bool = False) -> None:
    """Serves until SIGTERM, SIGINT or, if asked, the end of standard input; then drains for the configured grace.

    Prints one JSON line {"address", "services"} on standard output when the server answers; "metrics" is there
    when they have an address.

    Raises:
        ListenError: The address cannot be listened on.
    """
    configure_logs(config.log_format, quiet=quiet)
    if not is_remote(config.store):
        Path(config.store).mkdir(parents=True, exist_ok=True)
    # A model's thread gives the interpreter away only this often; the default of 5 ms is as long as a
    # small model's whole answer, and its first token would wait for the last.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stdout = claim_stdout()
    asyncio.run(_serve(config, stdout, exit_with_stdin))
    # A model may be in the middle of a token or a load, for which the interpreter would wait; and where calls were
    # cut off, gRPC's own end has been seen to take 8 s.
    _leave()


async def _serve(config: ServerConfig, stdout: int, exit_with_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if exit_with_stdin:
        call_at_stdin_end(lambda: loop.call_soon_threadsafe(stopping.set))
    server = Server(config)
    await server.start()
    keep()
    answer = {"address": server.address, "services": list(config.services)}
    if server.metrics_address:
        answer["metrics"] = server.metrics_address
    os.write(stdout, f"{json.dumps(answer)}\n".encode())
    _log.info("serving %s on %s", ", ".join(config.services), server.address)
    ended = asyncio.create_task(server.wait_ended())
    ended.add_done_callback(lambda _: stopping.set())
    await stopping.wait()
    if ended.done():
        _log.critical("gRPC's server has ended by itself", exc_info=ended.exception())
        _leave(1)
    _log.info("stopping")
    # Work in threads cannot be cancelled: whatever still runs then has been promised to nobody.
    last_call = threading.Timer(config.grace_s + LEAVING_S, _leave)
    last_call.daemon = True
    last_call.start()
    await server.stop(config.grace_s)
    _log.info("stopped")


def _leave(code: int = 0) -> None:
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def call_at_stdin_end(callback: Callable[[], object]) -> None:
    """Calls `callback` in a thread of its own once nobody holds the other end of standard input."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        callback()

    threading.Thread(target=watch, name="stdin", daemon=True).start()
