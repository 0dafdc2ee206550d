"""What went wrong in a call, as a ServiceError."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vlmpress_services.errors import ServiceError

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
# What grpc.aio says, as INTERNAL, of a call that ended while it sent a message; how it ended is lost then.
LOST_TEXT = "Internal error from Core"


def service_error(error: grpc.RpcError) -> ServiceError:
    """Code, text and ErrorInfo of a failed call."""
    # What a stub raises also is the call, or what asyncio keeps of it.
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return ServiceError("UNKNOWN", _one_line(str(error)))
    metadata: Any = error.trailing_metadata() or ()
    trailing = dict(metadata)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in _details(trailing.get(DETAILS_KEY, b"")):
        # Unpack leaves its argument as it is where the detail is of another kind.
        _ = detail.Unpack(info) or detail.Unpack(retry)
    text, code = _one_line(error.details() or ""), error.code().name
    if text == LOST_TEXT and not info.reason:
        code = grpc.StatusCode.UNAVAILABLE.name
    return ServiceError(
        code,
        text,
        reason=info.reason,
        metadata=info.metadata,
        request_id=str(trailing.get(REQUEST_ID_KEY, "")),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None,
    )


def _details(data: str | bytes) -> list[Any]:
    try:
        return list(status_pb2.Status.FromString(data if isinstance(data, bytes) else data.encode()).details)
    except DecodeError:
        # Something between us and the server wrote it: code and text still say what happened.
        return []


def _one_line(text: str) -> str:
    return " ".join(text.split())
