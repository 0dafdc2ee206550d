"""Calibration samples: keyword arguments of the model's forward."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from quantpack.errors import CalibrationError

Sample = Mapping[str, Any]


def read_samples(calibration: Iterable[Sample]) -> list[Sample]:
    """All samples in memory; what the model makes of them is seen when it runs.

    Raises:
        CalibrationError: There is none, or one is no mapping of argument names with a tensor in it; counts from 0.
    """
    if isinstance(calibration, Mapping | Tensor | str) or not isinstance(calibration, Iterable):
        raise CalibrationError(
            f"calibration: expected an iterable of forward keyword arguments, got {type(calibration).__name__}"
        )
    samples: list[Sample] = []
    for number, sample in enumerate(calibration):
        if not isinstance(sample, Mapping) or not all(isinstance(name, str) for name in sample):
            got = type(sample).__name__
            raise CalibrationError(
                f"calibration sample {number}: expected a dict of forward keyword arguments, got {got}"
            )
        if not any(isinstance(value, Tensor) and value.numel() for value in sample.values()):
            raise CalibrationError(
                f"calibration sample {number}: expected at least one tensor that is not empty, got {sorted(sample)}"
            )
        samples.append(dict(sample))
    if not samples:
        raise CalibrationError("calibration: expected at least one sample, got an empty iterable")
    return samples
