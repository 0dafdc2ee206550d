"""Between this package's types and the protobuf messages of `vlmpress.tokenreduce.v1`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import json_format

from tokenreduce.attachment import attach
from tokenreduce.errors import PolicyError, WireError
from tokenreduce.planning import ImagePlan
from tokenreduce.policy import CalibrationDistribution, ReductionPolicy, check_factors
from tokenreduce.running_calibration import CalibrationSettings
from vlmpress.artifact import POLICY_FILE, verify
from vlmpress.tokenreduce.v1 import tokenreduce_pb2, tokenreduce_service_pb2

# 256 MiB of float32: 7 images of 24 x 24 x 16384, or 113 of LLaVA-1.5's 24 x 24 x 1024.
MAX_ELEMENTS = 1 << 26
MAX_FACTORS = 16

_MODES = {"residual": tokenreduce_pb2.MODE_RESIDUAL, "literal": tokenreduce_pb2.MODE_LITERAL}
_NORMALIZATIONS = {"none": tokenreduce_pb2.NORMALIZATION_NONE, "image": tokenreduce_pb2.NORMALIZATION_IMAGE}


def attach_policy(model: Any, policy: tokenreduce_pb2.ReductionPolicy) -> Any:
    """Attaches a policy that came as protobuf; the entry point `dfmr` of `vlmpress.token_reducers`.

    Returns:
        The handle of `tokenreduce.attach`. Errors as there, and PolicyError.
    """
    return attach(model, policy_from_proto(policy))


def policy_to_proto(policy: ReductionPolicy) -> tokenreduce_pb2.ReductionPolicy:
    """The message that `policy_from_proto` reads back as an equal policy."""
    return tokenreduce_pb2.ReductionPolicy(
        method=policy.method,
        mode=_MODES[policy.mode],
        tau=policy.tau,
        factors=policy.factors,
        normalization=_NORMALIZATIONS[policy.normalization],
        calibration=None if policy.calibration is None else distribution_to_proto(policy.calibration),
    )


def policy_from_proto(message: tokenreduce_pb2.ReductionPolicy) -> ReductionPolicy:
    """The policy a message holds; nothing is filled in.

    Raises:
        PolicyError: A field is missing, unknown or out of range.
    """
    return ReductionPolicy(
        method=message.method,
        mode=_name(_MODES, message.mode, "mode"),
        tau=message.tau,
        factors=_factors(message.factors),
        normalization=_name(_NORMALIZATIONS, message.normalization, "normalization"),
        calibration=distribution_from_proto(message.calibration) if message.HasField("calibration") else None,
    )


def read_policy(path: Path) -> ReductionPolicy:
    """The policy in a file, a policy artifact (every byte checked) or a model directory that has one.

    Raises:
        ArtifactError: An artifact is damaged.
        PolicyError: There is no policy, it is not the JSON that `vlmpress.artifact.write_policy` writes, or a
            field is missing or out of range.
    """
    if path.is_dir():
        if (path / "manifest.json").exists():
            verify(path)
        path = path / POLICY_FILE
    try:
        message = json_format.Parse(path.read_text(encoding="utf-8"), tokenreduce_pb2.ReductionPolicy())
    except (OSError, ValueError, RecursionError, json_format.ParseError) as error:
        raise PolicyError(f"{path}: expected a reduction policy as JSON, got {error}") from error
    try:
        return policy_from_proto(message)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error


def distribution_to_proto(seen: CalibrationDistribution) -> tokenreduce_pb2.CalibrationDistribution:
    """The message that `distribution_from_proto` reads back as an equal distribution."""
    factors = [
        tokenreduce_pb2.FactorDistribution(share=share, sigma_deciles=deciles)
        for share, deciles in zip(seen.shares, seen.deciles, strict=True)
    ]
    return tokenreduce_pb2.CalibrationDistribution(
        num_images=seen.num_images, mean_tokens=seen.mean_tokens, factors=factors
    )


def distribution_from_proto(message: tokenreduce_pb2.CalibrationDistribution) -> CalibrationDistribution:
    """The distribution a message holds.

    Raises:
        PolicyError: A field is missing or out of range.
    """
    return CalibrationDistribution(
        num_images=message.num_images,
        mean_tokens=message.mean_tokens,
        shares=tuple(factor.share for factor in message.factors),
        deciles=tuple(tuple(factor.sigma_deciles) for factor in message.factors),
    )


def settings_to_proto(settings: CalibrationSettings) -> tokenreduce_service_pb2.CalibrationSettings:
    """The message that `settings_from_proto` reads back as equal settings."""
    message = tokenreduce_service_pb2.CalibrationSettings(
        mode=_MODES[settings.mode],
        factors=settings.factors,
        normalization=_NORMALIZATIONS[settings.normalization],
    )
    if settings.mean_tokens is not None:
        message.mean_tokens = settings.mean_tokens
    if settings.factor_shares is not None:
        message.shares.shares.extend(settings.factor_shares)
    return message


def settings_from_proto(message: tokenreduce_service_pb2.CalibrationSettings) -> CalibrationSettings:
    """The settings a message holds; nothing is filled in.

    Raises:
        CalibrationError: The target is missing or cannot be reached by any images.
        PolicyError: Another field is missing, unknown or out of range.
    """
    target = message.WhichOneof("target")
    return CalibrationSettings(
        mean_tokens=message.mean_tokens if target == "mean_tokens" else None,
        factor_shares=tuple(message.shares.shares) if target == "shares" else None,
        mode=_name(_MODES, message.mode, "mode"),
        factors=_factors(message.factors),
        normalization=_name(_NORMALIZATIONS, message.normalization, "normalization"),
    )


def features_to_proto(features: torch.Tensor) -> tokenreduce_service_pb2.Features:
    """Features [B, H, W, D] as shape and little-endian float32 bytes."""
    values = features.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
    return tokenreduce_service_pb2.Features(shape=values.shape, data=values.tobytes())


def features_from_proto(message: tokenreduce_service_pb2.Features, max_elements: int = MAX_ELEMENTS) -> torch.Tensor:
    """Features float32 [B, H, W, D] from a message; sizes are checked before anything is made of them.

    Raises:
        WireError: The shape is not four sizes from 1, it is larger than `max_elements`, the bytes are not as
            many as it says, or a value is NaN or infinite.
    """
    shape = tuple(message.shape)
    if len(shape) != 4 or min(shape) < 1:
        raise WireError(f"features.shape: expected 4 sizes of at least 1, got {list(shape[:8])}")
    # Python integers: the product cannot overflow.
    num_elements = math.prod(shape)
    if num_elements > max_elements:
        raise WireError(f"features.shape: expected at most {max_elements} elements, got {num_elements}")
    if len(message.data) != 4 * num_elements:
        raise WireError(f"features.data: expected {4 * num_elements} bytes, got {len(message.data)}")
    values = np.frombuffer(message.data, dtype="<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise WireError("features.data: expected finite values, got NaN or infinity")
    return torch.from_numpy(values)


def budget_request_to_proto(
    features: Sequence[torch.Tensor], limit: int, factors: Sequence[int], normalization: str
) -> tokenreduce_service_pb2.BudgetRequest:
    """The request for what `plan_budget` gives for the grids of tensors [B, H, W, D], one for each size of grid."""
    return tokenreduce_service_pb2.BudgetRequest(
        features=[features_to_proto(tensor) for tensor in features],
        max_tokens=limit,
        factors=factors,
        normalization=_NORMALIZATIONS[normalization],
    )


def budget_request_from_proto(
    message: tokenreduce_service_pb2.BudgetRequest,
) -> tuple[list[torch.Tensor], int, tuple[int, ...], str]:
    """The four arguments of `plan_budget`, the features as grids [H, W, D] in their order.

    Raises:
        PolicyError: factors or normalization is missing, unknown or out of range.
        WireError: There are no features, or one is not as `features_from_proto` wants it; the limit of elements
            is that of all together.
    """
    factors = _factors(message.factors)
    check_factors(factors)
    normalization = _name(_NORMALIZATIONS, message.normalization, "normalization")
    if not message.features:
        raise WireError("features: expected at least one tensor, got none")
    left = MAX_ELEMENTS
    grids: list[torch.Tensor] = []
    for tensor in message.features:
        batch = features_from_proto(tensor, left)
        left -= batch.numel()
        grids += batch
    return grids, message.max_tokens, factors, normalization


def budget_to_proto(images: Sequence[ImagePlan]) -> tokenreduce_service_pb2.BudgetResponse:
    """What `plan_budget` returned, as the response of the Budget call."""
    return tokenreduce_service_pb2.BudgetResponse(
        images=[image_plan_to_proto(image) for image in images], total_tokens=sum(image.num_tokens for image in images)
    )


def budget_from_proto(message: tokenreduce_service_pb2.BudgetResponse) -> list[ImagePlan]:
    """What `plan_budget` would have returned here."""
    return [image_plan_from_proto(image) for image in message.images]


def image_plan_to_proto(plan: ImagePlan) -> tokenreduce_pb2.ImagePlan:
    """The message that `image_plan_from_proto` reads back as an equal plan."""
    return tokenreduce_pb2.ImagePlan(factor=plan.factor, num_tokens=plan.num_tokens, sigmas=plan.sigmas)


def image_plan_from_proto(message: tokenreduce_pb2.ImagePlan) -> ImagePlan:
    """The plan of one image."""
    return ImagePlan(factor=message.factor, num_tokens=message.num_tokens, sigmas=tuple(message.sigmas))


def plans_to_proto(images: Sequence[ImagePlan], mean_tokens: float) -> tokenreduce_service_pb2.PlanResponse:
    """What `tokenreduce.plan` returned, as the response of the Plan call."""
    return tokenreduce_service_pb2.PlanResponse(
        images=[image_plan_to_proto(image) for image in images], mean_tokens=mean_tokens
    )


def plans_from_proto(message: tokenreduce_service_pb2.PlanResponse) -> tuple[list[ImagePlan], float]:
    """What `tokenreduce.plan` would have returned here."""
    return [image_plan_from_proto(image) for image in message.images], message.mean_tokens


def _factors(factors: Sequence[int]) -> tuple[int, ...]:
    # Each factor is a pass over the features: a request must not ask for a million.
    if len(factors) > MAX_FACTORS:
        raise PolicyError(f"factors: expected at most {MAX_FACTORS}, got {len(factors)}")
    return tuple(factors)


def _name(names: dict[str, Any], value: int, field: str) -> str:
    for name, number in names.items():
        if number == value:
            return name
    raise PolicyError(f"{field}: expected one of {', '.join(names)}, got number {value}")
