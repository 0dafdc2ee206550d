"""Errors of the services, and the one table that turns any error into a gRPC status code."""

import re
from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from vlmpress.artifact import ArtifactError, ArtifactFaultError, ExtensionMissingError
from vlmpress.cli import UserError
from vlmpress.data import DataError

PACKAGES = ("quantpack", "tokenreduce", "stagetrain", "verbdistill", "edgevlm")
"""Import names of the packages whose errors are meant for the caller."""


class PackageError(Exception, ABC):
    """Stands for any error class of one of the packages, none of which this module imports: for isinstance only."""

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        """True for exception classes defined in a package."""
        return issubclass(other, Exception) and other.__module__.partition(".")[0] in PACKAGES


class ServicesError(Exception):
    """Anything vlmpress_services refuses or cannot do.

    Attributes:
        metadata: What a program may want to know beside the text; a client finds it in ErrorInfo.
    """

    def __init__(self, text: str = "", *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.metadata = dict(metadata or {})


class NotFoundError(ServicesError, LookupError):
    """An artifact, a file or a job with this name does not exist."""


class InvalidRequestError(ServicesError, ValueError):
    """A request or an argument is not what the contract asks for."""


class AlreadyExistsError(ServicesError, ValueError):
    """Something else was made under this name before."""


class ConflictError(ServicesError, RuntimeError):
    """Somebody else has changed it meanwhile; what is there now is in `metadata`."""


class UnauthenticatedError(ServicesError, PermissionError):
    """A call has no token, an unknown one, or one that has expired."""


class ScopeError(ServicesError, PermissionError):
    """A token's scopes do not cover the method."""


class TimeLimitError(ServicesError, TimeoutError):
    """A call took longer than the server lets its method take."""


class UnknownMethodError(ServicesError, NotImplementedError):
    """The server has no such method."""


class RequestTooLargeError(ServicesError, ValueError):
    """A message is larger than its method takes."""


class OverloadedError(ServicesError, RuntimeError):
    """A bounded queue or cache is full."""


class StoreFullError(ServicesError, RuntimeError):
    """The disk has no room for what is being written."""


class RemoteStoreError(ServicesError, RuntimeError):
    """A bucket cannot be reached, refuses us, or does not keep to what a store needs of it."""


class ExtraMissingError(ServicesError, ImportError):
    """A service was asked for whose package is not installed."""


class StoppingError(ServicesError, RuntimeError):
    """The server is shutting down."""


class LockedError(ServicesError, TimeoutError):
    """Another process is at work on the same thing."""


class WorkersDiedError(ServicesError, RuntimeError):
    """Workers of a run died more often than the run allows."""


class ListenError(ServicesError, OSError):
    """The address cannot be listened on."""


class LaunchError(ServicesError, RuntimeError):
    """A server process did not start."""


class ServiceError(ServicesError, RuntimeError):
    """A call to a server failed.

    Attributes:
        code: The gRPC status code's name.
        text: What the server says of it, one line.
        reason: What was wrong in UPPER_SNAKE, by the answer's ErrorInfo; empty where it has none.
        request_id: Finds the call in the server's log; empty where no server answered.
        retry_after_s: When the server wants to be asked again; None where it says nothing of it.
    """

    def __init__(
        self,
        code: str,
        text: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {text}", metadata=metadata)
        self.code = code
        self.text = text
        self.reason = reason
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["ServiceError"], tuple[str, str], dict[str, Any]]:
        """Arguments and attributes again, so that the error survives the way back from another process."""
        return (ServiceError, (self.code, self.text), vars(self))


EXPECTED = (ServicesError, PackageError, ArtifactError, DataError, UserError)
"""Errors that are raised on purpose: their texts are for the user, and another attempt would end the same way."""

INTERNAL_TEXT = "internal error"

# First match wins, so subclasses stand before their bases.
_OWN: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (ConflictError, grpc.StatusCode.ABORTED),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED),
    (ScopeError, grpc.StatusCode.PERMISSION_DENIED),
    (TimeLimitError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (UnknownMethodError, grpc.StatusCode.UNIMPLEMENTED),
    (RequestTooLargeError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoppingError, grpc.StatusCode.UNAVAILABLE),
    (LockedError, grpc.StatusCode.UNAVAILABLE),
    (RemoteStoreError, grpc.StatusCode.UNAVAILABLE),
    (ExtraMissingError, grpc.StatusCode.FAILED_PRECONDITION),
    (DataError, grpc.StatusCode.INVALID_ARGUMENT),
    (ExtensionMissingError, grpc.StatusCode.FAILED_PRECONDITION),
    (ArtifactFaultError, grpc.StatusCode.DATA_LOSS),
    (ArtifactError, grpc.StatusCode.FAILED_PRECONDITION),
)

# What a package's own error means follows from the builtin it also is.
_PACKAGE: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (LookupError, grpc.StatusCode.NOT_FOUND),
    (FileNotFoundError, grpc.StatusCode.NOT_FOUND),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
    (TypeError, grpc.StatusCode.INVALID_ARGUMENT),
    (ImportError, grpc.StatusCode.FAILED_PRECONDITION),
    (Exception, grpc.StatusCode.FAILED_PRECONDITION),
)


def reason_of(error: Exception) -> str:
    """The error's class in UPPER_SNAKE without its "Error"; INTERNAL for what nobody raised on purpose."""
    if status_of(error)[0] is grpc.StatusCode.INTERNAL:
        return "INTERNAL"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).upper()


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Status code and text for the client; INTERNAL and a constant text for what nobody raised on purpose."""
    table = _PACKAGE if isinstance(error, PackageError) else _OWN
    for kind, code in table:
        if isinstance(error, kind):
            return code, one_line(error)
    return grpc.StatusCode.INTERNAL, INTERNAL_TEXT


def one_line(error: Exception, hidden: Path | None = None) -> str:
    """The error's text on one line; where it names the path `hidden`, it says "store" instead."""
    text = str(error) if hidden is None else str(error).replace(str(hidden), "store")
    return " ".join(text.split())
