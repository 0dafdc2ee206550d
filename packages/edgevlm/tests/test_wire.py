import pytest

from edgevlm.errors import ModelInputError, RequestError
from edgevlm.serving.events import Finish, FinishReason, GeneratedToken
from edgevlm.serving.requests import GenerationRequest, Sampling, Turn
from edgevlm.spec import EdgeModelSpec
from edgevlm.wire import (
    event_from_proto,
    event_to_proto,
    request_from_proto,
    request_to_proto,
    spec_from_proto,
    spec_to_proto,
)
from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as service_pb2


@pytest.mark.parametrize("event", [
    GeneratedToken(id=7, text=" a"),
    Finish(reason=FinishReason.STOP, num_prompt_tokens=9, num_visual_tokens=4, num_generated_tokens=2, text="a b"),
    Finish(reason=FinishReason.DEADLINE, num_prompt_tokens=0, num_visual_tokens=0, num_generated_tokens=0, text=""),
    Finish(reason=FinishReason.LENGTH, num_prompt_tokens=1, num_visual_tokens=0, num_generated_tokens=1, text=""),
])  # fmt: skip
def test_event_round_trip(event):
    assert event_from_proto(event_to_proto(event)) == event


@pytest.mark.parametrize("response", [service_pb2.GenerateResponse(),
                                      service_pb2.GenerateResponse(finish=service_pb2.Finish())])  # fmt: skip
def test_empty_event_is_refused(response):
    with pytest.raises(RequestError):
        event_from_proto(response)


def test_request_round_trip():
    request = GenerationRequest(
        prompt="and now", max_new_tokens=3, images=(b"png", b"jpeg"), max_visual_tokens=9, deadline_s=101.5,
        history=(Turn(question="what", answer="red", num_images=1), Turn(question="why", answer="")),
        sampling=Sampling(temperature=0.5, top_p=0.25, seed=0),
    )  # fmt: skip
    assert request_from_proto(request_to_proto("m", request, now_s=100), now_s=100) == request
    plain = GenerationRequest(prompt="what", max_new_tokens=3)
    assert request_from_proto(request_to_proto("m", plain, now_s=7), now_s=7) == plain
    assert request_from_proto(service_pb2.GenerateRequest(model="m", prompt="what", max_new_tokens=3), now_s=0) == plain


def test_the_earlier_deadline_counts():
    message = service_pb2.GenerateRequest(model="m", prompt="what", max_new_tokens=3, timeout_ms=1500)
    for call_s, expected_s in ((None, 11.5), (11.0, 11.0), (12.0, 11.5)):
        assert request_from_proto(message, now_s=10, call_deadline_s=call_s).deadline_s == expected_s
    message.timeout_ms = 0
    assert request_from_proto(message, now_s=10, call_deadline_s=12).deadline_s == 12
    late = GenerationRequest(prompt="what", max_new_tokens=3, deadline_s=9)
    assert request_to_proto("m", late, now_s=10).timeout_ms == 1, "0 would be no limit"


def test_one_image_of_an_older_client_is_the_first():
    # Field 2 held a single image before it was repeated.
    data = bytes([0x0A, 1]) + b"m" + bytes([0x12, 3]) + b"png" + bytes([0x1A, 4]) + b"what" + bytes([0x20, 3])
    assert request_from_proto(service_pb2.GenerateRequest.FromString(data), now_s=0).images == (b"png",)


@pytest.mark.parametrize("fields", [
    {"model": ""}, {"prompt": " "}, {"max_new_tokens": 0}, {"sampling": {"temperature": -1}},
    {"sampling": {"temperature": float("nan")}}, {"sampling": {"top_p": 1.5}}, {"sampling": {"seed": 2**63}},
    {"history": [{"question": "", "answer": "a"}]}, {"history": [{"question": "q", "answer": "a", "num_images": 2}]},
])  # fmt: skip
def test_bad_request(fields):
    message = service_pb2.GenerateRequest(**({"model": "m", "prompt": "what", "max_new_tokens": 1} | fields))
    with pytest.raises(RequestError, match="expected"):
        request_from_proto(message, now_s=0)


def test_only_encoded_images_are_sent(tiny):
    request = GenerationRequest(prompt="what", max_new_tokens=1, images=(tiny.image(),))
    with pytest.raises(RequestError, match="expected encoded bytes to send, got Image"):
        request_to_proto("m", request, now_s=0)


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
