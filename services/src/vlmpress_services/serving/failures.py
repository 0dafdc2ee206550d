"""Errors as a client gets them: a status code, one line, and google.rpc's details."""

from functools import lru_cache
from pathlib import Path

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from vlmpress_services.errors import OverloadedError, ServicesError, StoppingError, reason_of, status_of

DOMAIN = "vlmpress"
DETAILS_KEY = "grpc-status-details-bin"
RETRY_DELAY_S = 1
# A status travels in HTTP/2 headers, of which clients take 8 KiB by default.
MAX_TEXT = 1000
MAX_METADATA_VALUE = 200


def failure(error: Exception, hidden: Path) -> tuple[grpc.StatusCode, str, bytes]:
    """Status code, text and serialized google.rpc.Status of an error.

    Args:
        error: What was raised.
        hidden: A path of this machine that texts may hold; clients see "store" instead.
    """
    code, text = status_of(error)
    text = text.replace(str(hidden), "store")[:MAX_TEXT]
    metadata = error.metadata if isinstance(error, ServicesError) else {}
    asks_again = isinstance(error, OverloadedError | StoppingError)
    return code, text, _status(code.value[0], text, reason_of(error), tuple(metadata.items()), asks_again)


# A crowd is refused with the same few texts, as fast as it comes.
@lru_cache(maxsize=64)
def _status(code: int, text: str, reason: str, metadata: tuple[tuple[str, str], ...], asks_again: bool) -> bytes:
    short = {key: value[:MAX_METADATA_VALUE] for key, value in metadata}
    details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=short))]
    if asks_again:
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=RETRY_DELAY_S))))
    return status_pb2.Status(code=code, message=text, details=details).SerializeToString()


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
