"""Plan, Calibrate and Budget answer what the library answers; bad input is refused and the server lives."""

import math
from typing import Any

import grpc
import pytest
import torch

from tokenreduce import CalibrationSettings, ReductionPolicy, calibrate, plan, plan_budget
from tokenreduce.wire import (
    budget_from_proto,
    budget_request_to_proto,
    features_to_proto,
    plans_from_proto,
    policy_from_proto,
    policy_to_proto,
    settings_to_proto,
)
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2 as pb
from vlmpress.tokenreduce.v1.tokenreduce_service_pb2_grpc import TokenReduceServiceStub
from vlmpress_services import tokenreduce_service

POLICY = ReductionPolicy(tau=0.5)
SETTINGS = CalibrationSettings(mean_tokens=14)


def images(num_images: int, height: int = 6, width: int = 5, seed: int = 0) -> torch.Tensor:
    """From flat to noisy, so that they get different factors."""
    noise = torch.randn(num_images, height, width, 8, generator=torch.Generator().manual_seed(seed))
    return torch.linspace(0, 1, 8) + noise * torch.linspace(0.01, 1, num_images)[:, None, None, None]


def requests(*batches: torch.Tensor, settings: CalibrationSettings = SETTINGS) -> list[pb.CalibrateRequest]:
    sent = [pb.CalibrateRequest(features=features_to_proto(batch)) for batch in batches]
    sent[0].settings.CopyFrom(settings_to_proto(settings))
    return sent


@pytest.mark.parametrize("mode", ["residual", "literal"])
async def test_plan_answers_what_the_library_answers(serving: Any, mode: str) -> None:
    policy = ReductionPolicy(tau=0.5, mode=mode)
    request = pb.PlanRequest(features=features_to_proto(images(9)), policy=policy_to_proto(policy))
    async with serving("tokenreduce") as channel:
        answer = plans_from_proto(await TokenReduceServiceStub(channel).Plan(request))
    assert answer == plan(images(9), policy)
    assert len({image.factor for image in answer[0]}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        CalibrationSettings(factor_shares=(0.2, 0.5, 0.3), normalization="none"),
        CalibrationSettings(mean_tokens=20, factors=(1, 2), mode="literal"),
    ],
)
async def test_calibrate_answers_what_the_library_answers(serving: Any, settings: CalibrationSettings) -> None:
    batches = [images(9), images(4, 4, 8, seed=1)]
    expected = calibrate(
        batches,
        settings.mean_tokens,
        factor_shares=settings.factor_shares,
        factors=settings.factors,
        mode=settings.mode,
        normalization=settings.normalization,
    )
    assert expected.calibration is not None
    async with serving("tokenreduce") as channel:
        stub = TokenReduceServiceStub(channel)
        # The same images in two requests and in three.
        for parts in (batches, [batches[0][:2], batches[0][2:], batches[1]]):
            answer = await stub.Calibrate(iter(requests(*parts, settings=settings)))
            assert policy_from_proto(answer.policy) == expected


async def test_budget_answers_what_the_library_answers(serving: Any) -> None:
    tensors = [images(3), images(2, 4, 8, seed=1)]
    grids = [*tensors[0], *tensors[1]]
    async with serving("tokenreduce") as channel:
        stub = TokenReduceServiceStub(channel)
        for limit in (30, 60, 100, 2**64 - 1):
            answer = await stub.Budget(budget_request_to_proto(tensors, limit, (1, 2, 3), "image"))
            assert budget_from_proto(answer) == plan_budget(grids, limit)
            assert answer.total_tokens == sum(image.num_tokens for image in answer.images) <= limit


def bad_features() -> dict[str, pb.Features]:
    good = features_to_proto(images(2))
    nan = images(2)
    nan[1, 2, 3, 4] = math.nan
    return {
        "nothing": pb.Features(),
        "NaN": features_to_proto(nan),
        "infinity": features_to_proto(images(2) / 0),
        "bytes": pb.Features(shape=good.shape, data=good.data[:-1]),
        "rank": pb.Features(shape=[2, 6, 5], data=good.data),
        "empty side": pb.Features(shape=[2, 0, 5, 8]),
        # 2^16 ^ 4 is 0 modulo 2^64.
        "overflow": pb.Features(shape=[2**16] * 4),
        "too large": pb.Features(shape=[2**32 - 1] * 4, data=good.data),
    }


def bad_policies() -> dict[str, Any]:
    found = {}
    for name, field, value in (
        ("tau 0", "tau", 0.0),
        ("tau below 0", "tau", -1.0),
        ("tau NaN", "tau", math.nan),
        ("no mode", "mode", 0),
        ("unknown mode", "mode", 99),
        ("unknown normalization", "normalization", 99),
        ("unknown method", "method", "other"),
    ):
        found[name] = policy_to_proto(POLICY)
        setattr(found[name], field, value)
    for name, factors in (("no factors", []), ("factors from 2", [2]), ("many factors", range(1, 1000))):
        found[name] = policy_to_proto(POLICY)
        found[name].ClearField("factors")
        found[name].factors.extend(factors)
    return found


async def refused(refusal: Any, call: Any, name: str) -> None:
    code, text = await refusal(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT, (name, code, text)
    assert "expected" in text, (name, text)
    assert "\n" not in text, (name, text)


async def test_plan_refuses_bad_input_and_goes_on(serving: Any, refusal: Any) -> None:
    good = pb.PlanRequest(features=features_to_proto(images(3)), policy=policy_to_proto(POLICY))
    async with serving("tokenreduce") as channel:
        stub = TokenReduceServiceStub(channel)
        await refused(refusal, stub.Plan(pb.PlanRequest()), "empty")
        await refused(refusal, stub.Plan(pb.PlanRequest(policy=good.policy)), "no features")
        await refused(refusal, stub.Plan(pb.PlanRequest(features=good.features)), "no policy")
        for name, features in bad_features().items():
            await refused(refusal, stub.Plan(pb.PlanRequest(features=features, policy=good.policy)), name)
        for name, policy in bad_policies().items():
            await refused(refusal, stub.Plan(pb.PlanRequest(features=good.features, policy=policy)), name)
        assert plans_from_proto(await stub.Plan(good)) == plan(images(3), POLICY)


async def test_calibrate_refuses_bad_input_and_goes_on(
    serving: Any, refusal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = requests(images(5))
    late = requests(images(5), images(5))
    late[1].settings.CopyFrom(late[0].settings)
    unset, both_ways, unknown = (requests(images(5))[0] for _ in range(3))
    unset.settings.ClearField("target")
    both_ways.settings.shares.shares.extend([0.5, 0.6, 0.0])
    unknown.settings.mode = 99  # type: ignore[assignment]
    cases: dict[str, list[pb.CalibrateRequest]] = {
        "no request": [],
        "empty": [pb.CalibrateRequest()],
        "settings alone": [pb.CalibrateRequest(settings=good[0].settings)],
        "features alone": [pb.CalibrateRequest(features=good[0].features)],
        "settings twice": late,
        "no target": [unset],
        "shares that do not add up": [both_ways],
        "unknown mode": [unknown],
        "mean out of reach": requests(images(5), settings=CalibrationSettings(mean_tokens=1000)),
        "another mean out of reach": requests(images(5), settings=CalibrationSettings(mean_tokens=1)),
        "an empty second request": [good[0], pb.CalibrateRequest()],
    }
    for name, features in bad_features().items():
        cases[f"second features: {name}"] = [good[0], pb.CalibrateRequest(features=features)]
    async with serving("tokenreduce") as channel:
        stub = TokenReduceServiceStub(channel)
        for name, sent in cases.items():
            await refused(refusal, stub.Calibrate(iter(sent)), name)
        answer = await stub.Calibrate(iter(good))
        assert policy_from_proto(answer.policy) == calibrate([images(5)], 14)
        monkeypatch.setattr(tokenreduce_service, "MAX_CALIBRATION_IMAGES", 9)
        await refused(refusal, stub.Calibrate(iter(requests(images(5), images(5)))), "too many images")


async def test_budget_refuses_bad_input_and_goes_on(serving: Any, refusal: Any) -> None:
    good = budget_request_to_proto([images(3)], 40, (1, 2, 3), "image")
    async with serving("tokenreduce") as channel:
        stub = TokenReduceServiceStub(channel)
        await refused(refusal, stub.Budget(pb.BudgetRequest()), "empty")
        for name, change in {
            "no limit": {"max_tokens": 0},
            "limit too small": {"max_tokens": 11},
            "no features": {"features": []},
            "no factors": {"factors": []},
            "factors from 2": {"factors": [2, 3]},
            "many factors": {"factors": list(range(1, 1000))},
            "no normalization": {"normalization": 0},
            "unknown normalization": {"normalization": 99},
        }.items():
            request = pb.BudgetRequest.FromString(good.SerializeToString())
            request.ClearField(next(iter(change)))  # type: ignore[arg-type]
            request.MergeFrom(pb.BudgetRequest(**change))  # type: ignore[arg-type]
            await refused(refusal, stub.Budget(request), name)
        for name, features in bad_features().items():
            request = pb.BudgetRequest.FromString(good.SerializeToString())
            request.features.append(features)
            await refused(refusal, stub.Budget(request), name)
        assert budget_from_proto(await stub.Budget(good)) == plan_budget(images(3), 40)
