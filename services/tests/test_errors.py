import copy

from grpc import StatusCode

from edgevlm.errors import EdgeVlmError, ImageError
from quantpack import CorruptPackError, ModelMismatchError
from stagetrain.errors import UnknownSchemeError
from tokenreduce import UnsupportedModelError
from verbdistill import MatchingError
from vlmpress.artifact import ArtifactError, ArtifactFaultError, ExtensionMissingError
from vlmpress_services.errors import (
    INTERNAL_TEXT,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PackageError,
    RequestTooLargeError,
    ScopeError,
    StoppingError,
    TimeLimitError,
    UnauthenticatedError,
    UnknownMethodError,
    reason_of,
    status_of,
)


def test_every_known_error_has_its_code() -> None:
    for error, code in (
        (NotFoundError("x"), StatusCode.NOT_FOUND),
        (InvalidRequestError("x"), StatusCode.INVALID_ARGUMENT),
        (OverloadedError("x"), StatusCode.RESOURCE_EXHAUSTED),
        (RequestTooLargeError("x"), StatusCode.RESOURCE_EXHAUSTED),
        (ConflictError("x"), StatusCode.ABORTED),
        (UnauthenticatedError("x"), StatusCode.UNAUTHENTICATED),
        (ScopeError("x"), StatusCode.PERMISSION_DENIED),
        (TimeLimitError("x"), StatusCode.DEADLINE_EXCEEDED),
        (UnknownMethodError("x"), StatusCode.UNIMPLEMENTED),
        (StoppingError("x"), StatusCode.UNAVAILABLE),
        (ArtifactFaultError("x"), StatusCode.DATA_LOSS),
        (ArtifactError("x"), StatusCode.FAILED_PRECONDITION),
        (ExtensionMissingError("x"), StatusCode.FAILED_PRECONDITION),
        (CorruptPackError("x"), StatusCode.INVALID_ARGUMENT),
        (ModelMismatchError("x"), StatusCode.FAILED_PRECONDITION),
        (UnknownSchemeError("x"), StatusCode.NOT_FOUND),
        (UnsupportedModelError("x"), StatusCode.INVALID_ARGUMENT),
        (MatchingError("x"), StatusCode.INVALID_ARGUMENT),
        (ImageError("two\nlines"), StatusCode.INVALID_ARGUMENT),
        (EdgeVlmError("x"), StatusCode.FAILED_PRECONDITION),
    ):
        assert status_of(error) == (code, " ".join(str(error).split()))


def test_what_nobody_raised_on_purpose_is_internal() -> None:
    for error in (ValueError("secret"), KeyError("secret"), RuntimeError("secret"), OSError("secret")):
        assert status_of(error) == (StatusCode.INTERNAL, INTERNAL_TEXT)


def test_package_errors_are_told_by_where_they_are_defined() -> None:
    assert isinstance(CorruptPackError("x"), PackageError)
    assert not isinstance(NotFoundError("x"), PackageError)
    assert not isinstance(ValueError("x"), PackageError)


def test_a_reason_is_the_class_in_upper_snake() -> None:
    for error, reason in (
        (NotFoundError("x"), "NOT_FOUND"),
        (InvalidRequestError("x"), "INVALID_REQUEST"),
        (CorruptPackError("x"), "CORRUPT_PACK"),
        (ArtifactFaultError("x"), "ARTIFACT_FAULT"),
        (ValueError("secret"), "INTERNAL"),
    ):
        assert reason_of(error) == reason


def test_an_error_carries_what_a_program_may_want_to_know() -> None:
    error = ConflictError("tag it: expected a, got b", metadata={"digest": "b"})
    assert (str(error), error.metadata) == ("tag it: expected a, got b", {"digest": "b"})
    again = copy.copy(error)  # as a pickle does it
    assert (str(again), again.metadata) == (str(error), error.metadata)
    assert NotFoundError("x").metadata == {}
