"""When a call is made again: by gRPC where a method may be repeated, by the client where a stream broke."""

import json
import random
from functools import cache

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from vlmpress.artifact.v1 import artifact_service_pb2
from vlmpress.edgevlm.v1 import edgevlm_service_pb2
from vlmpress.evaluation.v1 import evaluation_service_pb2
from vlmpress.job.v1 import job_service_pb2
from vlmpress.quantpack.v1 import quantpack_service_pb2
from vlmpress.stagetrain.v1 import stagetrain_service_pb2
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2
from vlmpress.verbdistill.v1 import verbdistill_service_pb2
from vlmpress_services.errors import ServiceError

_FILES = (
    artifact_service_pb2,
    edgevlm_service_pb2,
    evaluation_service_pb2,
    job_service_pb2,
    quantpack_service_pb2,
    stagetrain_service_pb2,
    tokenreduce_service_pb2,
    verbdistill_service_pb2,
)
# As a server that stops or dies ends calls: CANCELLED is what one that comes in its last moment may get.
BROKEN_CODES = ("UNAVAILABLE", "CANCELLED")
# RESOURCE_EXHAUSTED is not among them: a server that sheds load would get more of it.
_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2.5,
    "retryableStatusCodes": BROKEN_CODES,
}
# Ends retries while less than about every tenth call succeeds.
_THROTTLING = {"maxTokens": 20, "tokenRatio": 0.1}


def services() -> list[ServiceDescriptor]:
    """Every service of the contracts."""
    return [service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()]


def is_repeatable(method: MethodDescriptor) -> bool:
    """Whether the contract says that a second call changes nothing more."""
    level = method.GetOptions().idempotency_level
    return level in (MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT)


@cache
def service_config() -> str:
    """The service config as JSON: methods that may be repeated are, while their server cannot be reached."""
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services()
        for method in service.methods
        if is_repeatable(method)
    ]
    config = {"methodConfig": [{"name": names, "retryPolicy": _POLICY}], "retryThrottling": _THROTTLING}
    return json.dumps(config if names else {})


class Breaks:
    """Counts the breaks of one stream since it last brought something.

    Args:
        max_first: After so many before it brought anything at all, the next one is final: is the address right?
        max_in_row: After so many later on, the next one is final; by default a server may be away for a minute or two.
        first_s: Pause after the first break, seconds; it doubles up to `longest_s`.
        longest_s: As said.
    """

    def __init__(self, max_first: int = 6, max_in_row: int = 16, first_s: float = 0.1, longest_s: float = 15.0) -> None:
        self._limit = max_first
        self._max_in_row = max_in_row
        self._first_s = first_s
        self._longest_s = longest_s
        self._in_row = 0

    def reset(self) -> None:
        """The stream brought something."""
        self._in_row = 0
        self._limit = self._max_in_row

    def pause_s(self, error: ServiceError) -> float:
        """Seconds to wait before the stream is taken up again; raises the error where that is of no use."""
        is_shed = error.code == "RESOURCE_EXHAUSTED" and error.retry_after_s is not None
        if self._in_row >= self._limit or not (is_shed or error.code in BROKEN_CODES):
            raise error
        pause_s = min(self._first_s * 2**self._in_row, self._longest_s)
        self._in_row += 1
        # Spread, so that the watchers of a server do not all come back at one moment.
        return max(pause_s * random.uniform(0.5, 1.0), error.retry_after_s or 0.0)
