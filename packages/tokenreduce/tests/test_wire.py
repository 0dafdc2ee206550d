import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import ImagePlan, PolicyError, ReductionPolicy, WireError, plan, wire
from vlmpress.tokenreduce.v1 import tokenreduce_pb2, tokenreduce_service_pb2

POLICIES = st.builds(
    ReductionPolicy,
    tau=st.floats(1e-300, 1e300),
    mode=st.sampled_from(["residual", "literal"]),
    factors=st.sets(st.integers(2, 2**32 - 1), max_size=5).map(lambda more: (1, *sorted(more))),
    normalization=st.sampled_from(["image", "none"]),
)


@settings(max_examples=50, deadline=None)
@given(POLICIES)
def test_policy_round_trip(policy):
    sent = tokenreduce_pb2.ReductionPolicy.FromString(wire.policy_to_proto(policy).SerializeToString())
    assert wire.policy_from_proto(sent) == policy


@pytest.mark.parametrize(
    "change",
    [
        {"method": "random"},
        {"mode": 0},
        {"mode": 9},
        {"normalization": 0},
        {"tau": 0.0},
        {"tau": math.inf},
        {"factors": []},
        {"factors": [2, 3]},
        {"factors": [1, 1]},
    ],
)
def test_bad_policies_are_refused(change):
    message = wire.policy_to_proto(ReductionPolicy(tau=0.1))
    for name, value in change.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    with pytest.raises(PolicyError, match="expected"):
        wire.policy_from_proto(message)


def test_features_round_trip():
    features = torch.randn(2, 3, 5, 4)
    message = wire.features_to_proto(features)
    assert list(message.shape) == [2, 3, 5, 4]
    assert len(message.data) == 4 * features.numel()
    assert torch.equal(wire.features_from_proto(message), features)
    assert torch.equal(
        wire.features_from_proto(wire.features_to_proto(features.bfloat16())), features.bfloat16().float()
    )


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ([], b"", "4 sizes"),
        ([2, 2, 2], b"\0" * 32, "4 sizes"),
        ([1, 0, 2, 2], b"", "at least 1"),
        ([1, 1, 1, 2], b"\0" * 7, "expected 8 bytes, got 7"),
        ([1, 1, 1, 2], b"\0" * 12, "expected 8 bytes, got 12"),
        ([2**32 - 1] * 4, b"", "at most"),
        # 2^16 ^ 4 is 0 modulo 2^64.
        ([2**16] * 4, b"", "at most"),
        ([1, 1, 1, 1], b"\x00\x00\xc0\x7f", "NaN"),
        ([1, 1, 1, 1], b"\x00\x00\x80\x7f", "infinity"),
    ],
)
def test_bad_features_are_refused(shape, data, message):
    with pytest.raises(WireError, match=message):
        wire.features_from_proto(tokenreduce_service_pb2.Features(shape=shape, data=data))


def test_the_element_limit_can_be_lowered():
    message = wire.features_to_proto(torch.zeros(1, 2, 2, 2))
    assert wire.features_from_proto(message, max_elements=8).numel() == 8
    with pytest.raises(WireError, match="at most 7"):
        wire.features_from_proto(message, max_elements=7)


def test_plans_round_trip():
    features = torch.randn(3, 8, 8, 4)
    images, mean = plan(features, ReductionPolicy(tau=0.85))
    assert wire.plans_from_proto(wire.plans_to_proto(images, mean)) == (images, mean)
    one = ImagePlan(factor=2, num_tokens=16, sigmas=(0.0, 0.25))
    assert wire.image_plan_from_proto(wire.image_plan_to_proto(one)) == one
