import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenreduce import (
    CalibrationDistribution,
    CalibrationError,
    CalibrationSettings,
    ImagePlan,
    PolicyError,
    ReductionPolicy,
    WireError,
    plan,
    plan_budget,
    wire,
)
from vlmpress.artifact import ArtifactError, create, write_policy
from vlmpress.tokenreduce.v1 import tokenreduce_pb2, tokenreduce_service_pb2


@st.composite
def distributions(draw, num_factors):
    counts = draw(st.lists(st.integers(0, 1000), min_size=num_factors, max_size=num_factors).filter(any))
    rows = st.lists(st.floats(0, 1e30), min_size=11, max_size=11).map(sorted).map(tuple)
    return CalibrationDistribution(
        num_images=sum(counts),
        mean_tokens=draw(st.floats(1e-3, 1e9)),
        shares=tuple(count / sum(counts) for count in counts),
        deciles=tuple(draw(st.lists(rows, min_size=num_factors, max_size=num_factors))),
    )


@st.composite
def policies(draw):
    factors = (1, *sorted(draw(st.sets(st.integers(2, 2**32 - 1), max_size=5))))
    return ReductionPolicy(
        tau=draw(st.floats(1e-300, 1e300)),
        mode=draw(st.sampled_from(["residual", "literal"])),
        factors=factors,
        normalization=draw(st.sampled_from(["image", "none"])),
        calibration=draw(st.none() | distributions(len(factors))),
    )


@settings(max_examples=50, deadline=None)
@given(policies())
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


def test_bad_distributions_are_refused():
    seen = CalibrationDistribution(num_images=4, mean_tokens=9, shares=(0.5, 0.5), deciles=((0.0,) * 11,) * 2)
    good = wire.policy_to_proto(ReductionPolicy(tau=0.1, factors=(1, 2), calibration=seen))
    assert wire.policy_from_proto(good).calibration == seen
    for field, value in (("num_images", 0), ("mean_tokens", math.nan), ("mean_tokens", 0.0)):
        message = tokenreduce_pb2.ReductionPolicy.FromString(good.SerializeToString())
        setattr(message.calibration, field, value)
        with pytest.raises(PolicyError, match=f"calibration.{field}: expected"):
            wire.policy_from_proto(message)
    message = tokenreduce_pb2.ReductionPolicy.FromString(good.SerializeToString())
    del message.calibration.factors[1]
    with pytest.raises(PolicyError, match="shares"):
        wire.policy_from_proto(message)
    message = tokenreduce_pb2.ReductionPolicy.FromString(good.SerializeToString())
    del message.calibration.factors[1].sigma_deciles[3]
    with pytest.raises(PolicyError, match="deciles"):
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


@st.composite
def calibration_settings(draw):
    policy = draw(policies())
    shares = draw(distributions(len(policy.factors))).shares
    by_mean = draw(st.booleans())
    return CalibrationSettings(
        mean_tokens=draw(st.floats(1e-3, 1e9)) if by_mean else None,
        factor_shares=None if by_mean else shares,
        factors=policy.factors,
        mode=policy.mode,
        normalization=policy.normalization,
    )


@settings(max_examples=50, deadline=None)
@given(calibration_settings())
def test_calibration_settings_round_trip(wanted):
    message = wire.settings_to_proto(wanted)
    sent = tokenreduce_service_pb2.CalibrationSettings.FromString(message.SerializeToString())
    assert wire.settings_from_proto(sent) == wanted


def test_bad_calibration_settings_are_refused():
    good = wire.settings_to_proto(CalibrationSettings(mean_tokens=9))
    for change, kind in (
        ({"mean_tokens": math.nan}, CalibrationError),
        ({"mean_tokens": 0.0}, CalibrationError),
        ({"shares": {"shares": [1.0]}}, CalibrationError),
        ({"shares": {"shares": [0.5, 0.6, 0.1]}}, CalibrationError),
        ({"shares": {"shares": [math.nan, 0.5, 0.5]}}, CalibrationError),
        ({"mode": 0}, PolicyError),
        ({"mode": 7}, PolicyError),
        ({"normalization": 0}, PolicyError),
    ):
        message = tokenreduce_service_pb2.CalibrationSettings(factors=[1, 2, 3], normalization=1, mode=1)
        message.mean_tokens = good.mean_tokens
        message.MergeFrom(tokenreduce_service_pb2.CalibrationSettings(**change))
        for name in change:
            if isinstance(change[name], int):
                setattr(message, name, change[name])
        with pytest.raises(kind, match="expected"):
            wire.settings_from_proto(message)
    good.ClearField("target")
    with pytest.raises(CalibrationError, match="exactly one"):
        wire.settings_from_proto(good)


def test_a_million_factors_are_refused():
    message = wire.policy_to_proto(ReductionPolicy(tau=0.1, factors=tuple(range(1, 18))))
    with pytest.raises(PolicyError, match="at most 16, got 17"):
        wire.policy_from_proto(message)


def test_budget_requests_and_answers_round_trip():
    tensors = [torch.randn(2, 4, 4, 3), torch.randn(1, 5, 2, 3)]
    message = wire.budget_request_to_proto(tensors, 20, (1, 2), "none")
    sent = tokenreduce_service_pb2.BudgetRequest.FromString(message.SerializeToString())
    grids, limit, factors, normalization = wire.budget_request_from_proto(sent)
    expected = [*tensors[0], *tensors[1]]
    assert len(grids) == 3
    assert all(torch.equal(grid, other) for grid, other in zip(grids, expected, strict=True))
    assert (limit, factors, normalization) == (20, (1, 2), "none")
    plans = plan_budget(grids, limit, factors, normalization)
    answer = wire.budget_to_proto(plans)
    assert wire.budget_from_proto(answer) == plans
    assert answer.total_tokens == sum(image.num_tokens for image in plans) <= 20


def test_bad_budget_requests_are_refused(monkeypatch):
    good = wire.budget_request_to_proto([torch.zeros(1, 2, 2, 2)] * 2, 20, (1, 2), "image")
    for change, kind in (
        ({"features": []}, WireError),
        ({"factors": []}, PolicyError),
        ({"factors": [2]}, PolicyError),
        ({"normalization": 0}, PolicyError),
    ):
        message = tokenreduce_service_pb2.BudgetRequest.FromString(good.SerializeToString())
        for name in change:
            message.ClearField(name)
        message.MergeFrom(tokenreduce_service_pb2.BudgetRequest(**change))
        with pytest.raises(kind, match="expected"):
            wire.budget_request_from_proto(message)
    monkeypatch.setattr(wire, "MAX_ELEMENTS", 15)
    with pytest.raises(WireError, match="at most 7 elements, got 8"):
        wire.budget_request_from_proto(good)


def test_a_policy_is_read_from_its_file_its_artifact_and_a_model(tmp_path):
    seen = CalibrationDistribution(num_images=4, mean_tokens=9, shares=(0.5, 0.5), deciles=((0.0,) * 11,) * 2)
    policy = ReductionPolicy(tau=0.1, factors=(1, 2), calibration=seen)
    proto = wire.policy_to_proto(policy)
    with create(tmp_path / "artifact") as draft:
        write_policy(draft.path, proto)
        draft.commit(proto, producer=("test", "1"))
    (tmp_path / "model").mkdir()
    write_policy(tmp_path / "model", proto)
    for path in (tmp_path / "artifact", tmp_path / "model", tmp_path / "model" / "reduction_policy.json"):
        assert wire.read_policy(path) == policy
    with (tmp_path / "artifact" / "reduction_policy.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ArtifactError, match=r"reduction_policy\.json"):
        wire.read_policy(tmp_path / "artifact")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tau": "x"}', '{"unknown": 1}', "[" * 100_000, "{}", '{"tau": 1}', "\udcff"]
)
def test_what_is_no_policy_is_one_line(tmp_path, text):
    (tmp_path / "policy.json").write_bytes(text.encode(errors="surrogateescape"))
    for path in (tmp_path / "policy.json", tmp_path, tmp_path / "missing"):
        with pytest.raises(PolicyError, match=r"\.json: |missing: "):
            wire.read_policy(path)


def test_plans_round_trip():
    features = torch.randn(3, 8, 8, 4)
    images, mean = plan(features, ReductionPolicy(tau=0.85))
    assert wire.plans_from_proto(wire.plans_to_proto(images, mean)) == (images, mean)
    one = ImagePlan(factor=2, num_tokens=16, sigmas=(0.0, 0.25))
    assert wire.image_plan_from_proto(wire.image_plan_to_proto(one)) == one
