"""Bearer tokens: a file that holds their names, hashes, scopes and ends, never the tokens themselves."""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vlmpress.artifact import whole_file
from vlmpress_services.errors import InvalidRequestError, UnauthenticatedError
from vlmpress_services.locking import locked
from vlmpress_services.serving.methods import SERVICES, Method
from vlmpress_services.serving.reloading import Reloaded

TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"name", "sha256", "scopes", "expires"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """What the file says of one token.

    Attributes:
        name: Of whoever holds it, as in logs.
        sha256: Of the token, 64 hex digits.
        scopes: "*", a service, or either with ":read" for methods that only read.
        expires: When it ends; None: never.
    """

    name: str
    sha256: str
    scopes: tuple[str, ...]
    expires: datetime | None = None

    def covers(self, method: Method) -> bool:
        """Whether a scope allows the method; health, reflection and what does not exist need none."""
        if method.is_infrastructure or not method.service:
            return True
        names = {"*", method.service}
        if method.is_read_only:
            names |= {"*:read", f"{method.service}:read"}
        return not names.isdisjoint(self.scopes)


class TokenFile:
    """The tokens of a file, read again when it changes.

    Raises:
        InvalidRequestError: The file cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._tokens = Reloaded("tokens", [path], lambda: read_tokens(path))

    def find(self, secret: str) -> Token:
        """The token that `secret` is.

        Raises:
            UnauthenticatedError: It is none, or has expired.
        """
        digest = hash_of(secret)
        found: Token | None = None
        # All are compared, and each in constant time, so that no answer's time tells anything of a hash.
        for token in self._tokens.get():
            if hmac.compare_digest(token.sha256, digest):
                found = token
        if found is None:
            raise UnauthenticatedError("authorization: the token is not known")
        if found.expires is not None and found.expires <= datetime.now(UTC):
            raise UnauthenticatedError(f"authorization: the token {found.name} has expired")
        return found


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Every token of a YAML file, a list with name, sha256, scopes and, optionally, expires (ISO 8601).

    Raises:
        InvalidRequestError: Names the entry, the field, what was expected and what came.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{path}: expected a readable file of tokens, got {error}") from error
    except yaml.YAMLError as error:
        raise InvalidRequestError(f"{path}: expected YAML, got what is none") from error
    if given is None:
        return ()
    if not isinstance(given, list):
        raise InvalidRequestError(f"{path}: expected a list of tokens, got {type(given).__name__}")
    tokens = tuple(_token(entry, f"{path}: entry {number}") for number, entry in enumerate(given))
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in tokens]
        if len(set(values)) != len(values):
            raise InvalidRequestError(f"{path}: {field}: expected each once, got one twice")
    return tokens


def add_token(path: Path, name: str, scopes: Sequence[str], expires: datetime | None) -> str:
    """A new token, whose hash the file then holds; the token itself is kept nowhere.

    Raises:
        InvalidRequestError: The name is taken, a field is bad, or the file is.
    """
    secret = secrets.token_urlsafe(TOKEN_BYTES)
    made = Token(name=name, sha256=hash_of(secret), scopes=tuple(scopes), expires=expires)
    token = _token(_entry(made), "token")
    with locked(path.with_name(path.name + ".lock")):
        tokens = read_tokens(path) if path.exists() else ()
        if any(other.name == name for other in tokens):
            raise InvalidRequestError(f"{path}: name: expected a new one, got {name!r}")
        text = yaml.safe_dump([_entry(each) for each in (*tokens, token)], sort_keys=False)
        with whole_file(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text.encode())
    return secret


def hash_of(secret: str) -> str:
    """SHA-256 of a token, 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _entry(token: Token) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": token.name, "sha256": token.sha256, "scopes": list(token.scopes)}
    return entry if token.expires is None else entry | {"expires": token.expires.isoformat()}


def _token(entry: Any, place: str) -> Token:
    # Nothing of an entry but its name is said in an error: a token written in place of its hash stays secret.
    if not isinstance(entry, dict) or not {"name", "sha256", "scopes"} <= set(entry) <= _FIELDS:
        raise InvalidRequestError(f"{place}: expected name, sha256, scopes and perhaps expires, got other fields")
    name, sha256, scopes = entry["name"], entry["sha256"], entry["scopes"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(f"{place}: name: expected 1 to 64 letters, digits or ._-, got another")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise InvalidRequestError(f"{place}: sha256: expected 64 hex digits, got something else")
    if not isinstance(scopes, list) or not scopes:
        raise InvalidRequestError(f"{place}: scopes: expected a list of at least one, got none")
    for scope in scopes:
        if not isinstance(scope, str) or scope.removesuffix(":read") not in (*SERVICES, "*"):
            raise InvalidRequestError(f"{place}: scopes: expected *, SERVICE or either with :read, got {scope!r}")
    return Token(name=name, sha256=sha256, scopes=tuple(scopes), expires=_expires(entry.get("expires"), place))


def _expires(value: Any, place: str) -> datetime | None:
    if value is None:
        return None
    try:
        # YAML reads a bare time as a datetime, with a zone or, by its rules, in UTC.
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{place}: expires: expected an ISO 8601 time, got {value!r}") from error
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
