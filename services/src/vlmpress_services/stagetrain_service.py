"""Plans of staged training on the wire."""
# ruff: noqa: N802 - gRPC methods keep the names of the protos.

import grpc

from stagetrain import DecoderShape, Schedule, StageTrainError, average_cost, named_schedule, schedule_costs
from stagetrain.wire import average_to_proto, cost_to_proto, schedule_from_proto, schedule_to_proto
from vlmpress.stagetrain.v1 import stagetrain_pb2
from vlmpress.stagetrain.v1 import stagetrain_service_pb2 as pb
from vlmpress.stagetrain.v1 import stagetrain_service_pb2_grpc as pb_grpc
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.serving.executor import BoundedExecutor
from vlmpress_services.serving.interceptors import Context
from vlmpress_services.serving.service import Host, Service

MAX_STAGES = 64
MAX_SIZE = 1 << 20


class StageTrainService(Service, pb_grpc.StageTrainServiceServicer):
    """Stages of schedules and what they cost."""

    def __init__(self) -> None:
        self._executor = BoundedExecutor("stagetrain")

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer to a server."""
        pb_grpc.add_StageTrainServiceServicer_to_server(self, server)

    async def close(self) -> None:
        """Drops calls that wait."""
        self._executor.close()

    async def PlanSchedule(self, request: pb.PlanScheduleRequest, context: Context) -> pb.PlanScheduleResponse:
        """The stages for a decoder of this depth, what each costs, and the run's average."""
        return await self._executor.run(_plan, request)


def build(host: Host) -> Service:
    """The service; it needs nothing of its host."""
    return StageTrainService()


def _plan(request: pb.PlanScheduleRequest) -> pb.PlanScheduleResponse:
    for field in ("num_layers", "num_visual_tokens", "num_text_tokens"):
        if getattr(request, field) > MAX_SIZE:
            raise InvalidRequestError(f"{field}: expected at most {MAX_SIZE}, got {getattr(request, field)}")
    if request.num_layers < 2:
        raise InvalidRequestError(f"num_layers: expected at least 2, got {request.num_layers}")
    if request.num_visual_tokens < 1:
        raise InvalidRequestError(f"num_visual_tokens: expected at least 1, got {request.num_visual_tokens}")
    schedule = _schedule(request)
    shape = _shape(request.shape) if request.HasField("shape") else None
    text = {"num_text_tokens": float(request.num_text_tokens)} if request.HasField("num_text_tokens") else {}
    costs = schedule_costs(schedule, request.num_layers, request.num_visual_tokens, shape, **text)
    return pb.PlanScheduleResponse(
        schedule=schedule_to_proto(schedule),
        costs=[cost_to_proto(cost) for cost in costs],
        average=average_to_proto(average_cost(costs)),
    )


def _schedule(request: pb.PlanScheduleRequest) -> Schedule:
    if request.WhichOneof("stages") == "scheme":
        return named_schedule(request.scheme, request.num_layers)
    if not request.HasField("schedule"):
        raise InvalidRequestError("stages: expected scheme or schedule, got none")
    if not 1 <= len(request.schedule.stages) <= MAX_STAGES:
        raise InvalidRequestError(f"schedule: stages: expected 1 to {MAX_STAGES}, got {len(request.schedule.stages)}")
    try:
        return schedule_from_proto(request.schedule)
    except StageTrainError as error:
        raise InvalidRequestError(f"schedule: {error}") from error


def _shape(message: stagetrain_pb2.DecoderShape) -> DecoderShape:
    heads = message.num_attention_heads
    for field in ("hidden_size", "intermediate_size", "num_attention_heads"):
        if not 1 <= getattr(message, field) <= MAX_SIZE:
            raise InvalidRequestError(f"shape: {field}: expected 1 to {MAX_SIZE}, got {getattr(message, field)}")
    if not message.head_dim and message.hidden_size % heads:
        raise InvalidRequestError(
            f"shape: head_dim: expected it where {heads} heads do not divide the hidden size, got none"
        )
    key_value_heads = message.num_key_value_heads or heads
    if heads % key_value_heads:
        raise InvalidRequestError(f"shape: num_key_value_heads: expected a divisor of {heads}, got {key_value_heads}")
    return DecoderShape(
        hidden_size=message.hidden_size,
        intermediate_size=message.intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=message.head_dim or message.hidden_size // heads,
    )
