from grpc import StatusCode

from edgevlm.errors import EdgeVlmError, ImageError
from quantpack import CorruptPackError, ModelMismatchError
from stagetrain.errors import UnknownSchemeError
from tokenreduce import UnsupportedModelError
from verbdistill import MatchingError
from vlmpress.artifact import ArtifactError, ArtifactFaultError, ExtensionMissingError
from vlmpress_services.errors import (
    INTERNAL_TEXT,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PackageError,
    status_of,
)


def test_every_known_error_has_its_code() -> None:
    for error, code in (
        (NotFoundError("x"), StatusCode.NOT_FOUND),
        (InvalidRequestError("x"), StatusCode.INVALID_ARGUMENT),
        (OverloadedError("x"), StatusCode.RESOURCE_EXHAUSTED),
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
