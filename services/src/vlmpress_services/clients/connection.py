"""Where a server is, how it is reached safely, and who asks."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlmpress_services.errors import InvalidRequestError

_LOCAL = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]")
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """What a client needs to reach a server. TLS is used with any of "https://", `ca` and `cert`.

    Attributes:
        address: "HOST:PORT", or "https://HOST:PORT" for TLS with the machine's own certificate authorities.
        token: Bearer token; sent over TLS, and without it to this machine only.
        ca: PEM file of the authorities that may have signed the server's certificate; None: the machine's.
        cert: PEM file of the client's certificate, for servers that ask for one.
        key: PEM file of its key.
    """

    address: str
    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Checks what can be known before a call."""
        host, _, port = self.target.rpartition(":")
        if not host or "/" in host or not (port.isascii() and port.isdigit()):
            raise InvalidRequestError(f"server: expected HOST:PORT or https://HOST:PORT, got {self.address!r}")
        if (self.cert is None) != (self.key is None):
            given, absent = ("cert", "key") if self.key is None else ("key", "cert")
            raise InvalidRequestError(f"{given}: expected a {absent} beside it, got none")
        if self.token and not _TOKEN.fullmatch(self.token):
            raise InvalidRequestError("token: expected printable ASCII without blanks, got other characters")
        if self.token and not self.is_encrypted and not _LOCAL.fullmatch(host):
            raise InvalidRequestError(f"token: expected TLS (https:// or a CA) to {self.target}, got neither")

    @property
    def target(self) -> str:
        """The address without its scheme."""
        return self.address.removeprefix("https://")

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is used."""
        return self.target != self.address or self.ca is not None or self.cert is not None


def find_connection(
    address: str | None = None,
    *,
    token_file: Path | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Connection:
    """A connection from arguments; what is None comes from the environment where that has it.

    Its variables: VLMPRESS_SERVER, VLMPRESS_TOKEN_FILE or VLMPRESS_TOKEN, VLMPRESS_CA, VLMPRESS_CERT, VLMPRESS_KEY.

    Raises:
        InvalidRequestError: No address, a file that cannot be read, or parts that do not go together.
    """
    address = address or environ.get("VLMPRESS_SERVER")
    if not address:
        raise InvalidRequestError("server: expected an address (--server or VLMPRESS_SERVER), got none")

    def path(given: Path | None, name: str) -> Path | None:
        return given or (Path(environ[name]) if environ.get(name) else None)

    token_file = path(token_file, "VLMPRESS_TOKEN_FILE")
    token = environ.get("VLMPRESS_TOKEN", "") if token_file is None else read_file(token_file, "token").decode("utf-8")
    return Connection(
        address=address,
        token=token.strip(),
        ca=path(ca, "VLMPRESS_CA"),
        cert=path(cert, "VLMPRESS_CERT"),
        key=path(key, "VLMPRESS_KEY"),
    )


def read_file(path: Path, what: str) -> bytes:
    """The bytes of a file that a connection names.

    Raises:
        InvalidRequestError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{what}: expected a file, got {path} ({error.strerror})") from error
