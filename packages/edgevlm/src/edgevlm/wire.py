"""Between this package's types and edgevlm/v1 messages; the only module that touches them."""

from edgevlm.errors import RequestError
from edgevlm.serving.events import Finish, FinishReason, GeneratedToken, GenerationEvent
from edgevlm.spec import EdgeModelSpec
from vlmpress.edgevlm.v1 import edgevlm_pb2
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as service_pb2

_REASON_TO_PROTO = {
    FinishReason.STOP: service_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: service_pb2.FINISH_REASON_LENGTH,
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


def request_from_proto(request: service_pb2.GenerateRequest) -> tuple[bytes | None, str, int, int | None]:
    """Image bytes (None when empty), prompt, max_new_tokens and max_visual_tokens (None when 0).

    These are the arguments of `Engine.generate`, in its order.

    Raises:
        RequestError: No model is named, the prompt is empty, or max_new_tokens is 0.
    """
    if not request.model:
        raise RequestError("model: expected a digest or tag, got an empty string")
    if not request.prompt.strip():
        raise RequestError("prompt: expected a question, got an empty string")
    if request.max_new_tokens < 1:
        raise RequestError("max_new_tokens: expected at least 1, got 0")
    return request.image or None, request.prompt, request.max_new_tokens, request.max_visual_tokens or None
