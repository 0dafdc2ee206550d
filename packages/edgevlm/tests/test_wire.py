import pytest

from edgevlm.errors import ModelInputError, RequestError
from edgevlm.serving.events import Finish, FinishReason, GeneratedToken
from edgevlm.spec import EdgeModelSpec
from edgevlm.wire import event_from_proto, event_to_proto, request_from_proto, spec_from_proto, spec_to_proto
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as service_pb2


@pytest.mark.parametrize("event", [
    GeneratedToken(id=7, text=" a"),
    Finish(reason=FinishReason.STOP, num_prompt_tokens=9, num_visual_tokens=4, num_generated_tokens=2, text="a b"),
    Finish(reason=FinishReason.LENGTH, num_prompt_tokens=1, num_visual_tokens=0, num_generated_tokens=1, text=""),
])  # fmt: skip
def test_event_round_trip(event):
    assert event_from_proto(event_to_proto(event)) == event


@pytest.mark.parametrize("response", [service_pb2.GenerateResponse(),
                                      service_pb2.GenerateResponse(finish=service_pb2.Finish())])  # fmt: skip
def test_empty_event_is_refused(response):
    with pytest.raises(RequestError):
        event_from_proto(response)


def test_request():
    request = service_pb2.GenerateRequest(model="m", prompt="what", max_new_tokens=3)
    assert request_from_proto(request) == (None, "what", 3, None)
    request.image, request.max_visual_tokens = b"png", 9
    assert request_from_proto(request) == (b"png", "what", 3, 9)


@pytest.mark.parametrize("fields", [{}, {"model": "m"}, {"model": "m", "prompt": " ", "max_new_tokens": 1},
                                    {"model": "m", "prompt": "what"}])  # fmt: skip
def test_bad_request(fields):
    with pytest.raises(RequestError, match="expected"):
        request_from_proto(service_pb2.GenerateRequest(**fields))


def test_spec_round_trip(tiny):
    config = tiny.edge("combined", compressor="conv", fusion_order="parallel", num_fusion_layers=2).config
    spec = EdgeModelSpec.of(config)
    assert spec == EdgeModelSpec(
        vision_encoder="clip", compressor="conv", fusion="combined", num_visual_tokens=16, num_compressed_tokens=4,
        fusion_order="parallel", num_fusion_layers=2,
    )  # fmt: skip
    assert spec_from_proto(spec_to_proto(spec)) == spec


def test_spec_written_before_order_and_layers_existed(tiny):
    message = spec_to_proto(EdgeModelSpec.of(tiny.edge().config))
    message.ClearField("fusion_order")
    message.ClearField("num_fusion_layers")
    assert spec_from_proto(message) == EdgeModelSpec.of(tiny.edge().config)


@pytest.mark.parametrize("changes", [{"fusion": "x"}, {"vision_encoder": ""}, {"num_compressed_tokens": 99},
                                     {"compressor": ""}, {"fusion_order": "x"}])  # fmt: skip
def test_bad_spec(tiny, changes):
    message = spec_to_proto(EdgeModelSpec.of(tiny.edge().config))
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(ModelInputError, match="expected"):
        spec_from_proto(message)
