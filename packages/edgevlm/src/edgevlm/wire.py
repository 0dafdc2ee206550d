"""Between this package's types and edgevlm/v1 messages; the only module that touches them."""

from edgevlm.errors import RequestError
from edgevlm.serving.events import Finish, FinishReason, GeneratedToken, GenerationEvent
from edgevlm.serving.requests import GenerationRequest, Sampling, Turn
from edgevlm.spec import EdgeModelSpec
from vlmpress.edgevlm.v1 import edgevlm_pb2
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as service_pb2

_REASON_TO_PROTO = {
    FinishReason.STOP: service_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: service_pb2.FINISH_REASON_LENGTH,
    FinishReason.DEADLINE: service_pb2.FINISH_REASON_DEADLINE,
}
_REASON_FROM_PROTO = {value: reason for reason, value in _REASON_TO_PROTO.items()}


def spec_to_proto(spec: EdgeModelSpec) -> edgevlm_pb2.EdgeModel:
    """The message an edge model's manifest holds."""
    return edgevlm_pb2.EdgeModel(
        vision_encoder=spec.vision_encoder,
        compressor=spec.compressor,
        fusion=spec.fusion,
        num_visual_tokens=spec.num_visual_tokens,
        num_compressed_tokens=spec.num_compressed_tokens,
        fusion_order=spec.fusion_order,
        num_fusion_layers=spec.num_fusion_layers,
    )


def spec_from_proto(message: edgevlm_pb2.EdgeModel) -> EdgeModelSpec:
    """The spec a manifest holds.

    Raises:
        ModelInputError: A value is unknown or out of range.
    """
    return EdgeModelSpec(
        vision_encoder=message.vision_encoder,
        compressor=message.compressor,
        fusion=message.fusion,
        num_visual_tokens=message.num_visual_tokens,
        num_compressed_tokens=message.num_compressed_tokens,
        # What was written before these fields existed.
        fusion_order=message.fusion_order or "serial",
        num_fusion_layers=message.num_fusion_layers or 1,
    )


def event_to_proto(event: GenerationEvent) -> service_pb2.GenerateResponse:
    """The message that carries one event of a stream."""
    if isinstance(event, GeneratedToken):
        return service_pb2.GenerateResponse(token=service_pb2.Token(id=event.id, text=event.text))
    return service_pb2.GenerateResponse(
        finish=service_pb2.Finish(
            reason=_REASON_TO_PROTO[event.reason],
            num_prompt_tokens=event.num_prompt_tokens,
            num_visual_tokens=event.num_visual_tokens,
            num_generated_tokens=event.num_generated_tokens,
            text=event.text,
        )
    )


def event_from_proto(response: service_pb2.GenerateResponse) -> GenerationEvent:
    """The event a message carries.

    Raises:
        RequestError: The message carries none, or an unknown finish reason.
    """
    kind = response.WhichOneof("event")
    if kind == "token":
        return GeneratedToken(id=response.token.id, text=response.token.text)
    if kind != "finish" or response.finish.reason not in _REASON_FROM_PROTO:
        raise RequestError(f"GenerateResponse: expected a token or a finish with a reason, got {kind or 'neither'}")
    finish = response.finish
    return Finish(
        reason=_REASON_FROM_PROTO[finish.reason],
        num_prompt_tokens=finish.num_prompt_tokens,
        num_visual_tokens=finish.num_visual_tokens,
        num_generated_tokens=finish.num_generated_tokens,
        text=finish.text,
    )


def request_to_proto(model: str, request: GenerationRequest, *, now_s: float) -> service_pb2.GenerateRequest:
    """The message that asks a model of the store.

    Args:
        model: Digest or tag.
        request: Its images are encoded ones.
        now_s: `time.monotonic()`, from which the message's timeout counts.

    Raises:
        RequestError: An image is not bytes.
    """
    message = service_pb2.GenerateRequest(
        model=model,
        prompt=request.prompt,
        max_new_tokens=request.max_new_tokens,
        max_visual_tokens=request.max_visual_tokens or 0,
        sampling=service_pb2.Sampling(
            temperature=request.sampling.temperature, top_p=request.sampling.top_p, seed=request.sampling.seed
        ),
        history=[
            service_pb2.Turn(question=turn.question, answer=turn.answer, num_images=turn.num_images)
            for turn in request.history
        ],
    )
    for image in request.images:
        if not isinstance(image, bytes):
            raise RequestError(f"images: expected encoded bytes to send, got {type(image).__name__}")
        message.images.append(image)
    if request.deadline_s is not None:
        message.timeout_ms = max(1, round(1000 * (request.deadline_s - now_s)))
    return message


def request_from_proto(
    message: service_pb2.GenerateRequest, *, now_s: float, call_deadline_s: float | None = None
) -> GenerationRequest:
    """The request a message carries; zeros mean no limit.

    Args:
        message: As it came.
        now_s: `time.monotonic()`, from which the message's timeout counts.
        call_deadline_s: When the call ends that brought it; the earlier of both counts.

    Raises:
        RequestError: No model is named, the prompt is empty, or a number is out of its range.
    """
    if not message.model:
        raise RequestError("model: expected a digest or tag, got an empty string")
    deadlines = [] if call_deadline_s is None else [call_deadline_s]
    if message.timeout_ms:
        deadlines.append(now_s + message.timeout_ms / 1000)
    sampling = message.sampling
    return GenerationRequest(
        prompt=message.prompt,
        max_new_tokens=message.max_new_tokens,
        images=tuple(message.images),
        history=tuple(
            Turn(question=turn.question, answer=turn.answer, num_images=turn.num_images) for turn in message.history
        ),
        max_visual_tokens=message.max_visual_tokens or None,
        deadline_s=min(deadlines, default=None),
        sampling=Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p or 1.0,
            seed=sampling.seed if sampling.HasField("seed") else None,
        ),
    )
