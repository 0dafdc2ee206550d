from types import SimpleNamespace
from typing import Any

import grpc

from vlmpress_services.clients.failures import service_error


def failed(*metadata: Any, text: str | None = "why") -> Any:
    return grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), text)


def test_details_that_do_not_parse_hide_nothing() -> None:
    error = service_error(failed(("grpc-status-details-bin", b"\xff\xff"), ("x-request-id", "abc")))
    assert (error.code, error.text, error.reason, error.request_id) == ("ABORTED", "why", "", "abc")


def test_an_error_without_text_or_details() -> None:
    error = service_error(failed(text=None))
    assert (error.text, error.reason, error.metadata, error.retry_after_s) == ("", "", {}, None)


def test_an_error_that_is_no_call() -> None:
    error = service_error(grpc.RpcError("broken\npipe"))
    assert (error.code, error.text) == ("UNKNOWN", "broken pipe")
    assert SimpleNamespace(**vars(error)).metadata == {}


def test_a_call_that_ended_as_it_sent_counts_as_broken() -> None:
    def failed(text: str) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), text)

    assert service_error(failed("Internal error from Core")).code == "UNAVAILABLE"
    assert service_error(failed("internal error")).code == "INTERNAL"
