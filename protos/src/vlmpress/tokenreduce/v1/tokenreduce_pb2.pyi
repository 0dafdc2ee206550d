from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_RESIDUAL: _ClassVar[Mode]
    MODE_LITERAL: _ClassVar[Mode]

class Normalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NORMALIZATION_UNSPECIFIED: _ClassVar[Normalization]
    NORMALIZATION_NONE: _ClassVar[Normalization]
    NORMALIZATION_IMAGE: _ClassVar[Normalization]
MODE_UNSPECIFIED: Mode
MODE_RESIDUAL: Mode
MODE_LITERAL: Mode
NORMALIZATION_UNSPECIFIED: Normalization
NORMALIZATION_NONE: Normalization
NORMALIZATION_IMAGE: Normalization

class ReductionPolicy(_message.Message):
    __slots__ = ("method", "mode", "tau", "factors", "normalization", "calibration")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TAU_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    method: str
    mode: Mode
    tau: float
    factors: _containers.RepeatedScalarFieldContainer[int]
    normalization: Normalization
    calibration: CalibrationDistribution
    def __init__(self, method: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., tau: _Optional[float] = ..., factors: _Optional[_Iterable[int]] = ..., normalization: _Optional[_Union[Normalization, str]] = ..., calibration: _Optional[_Union[CalibrationDistribution, _Mapping]] = ...) -> None: ...

class CalibrationDistribution(_message.Message):
    __slots__ = ("num_images", "mean_tokens", "factors")
    NUM_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MEAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    num_images: int
    mean_tokens: float
    factors: _containers.RepeatedCompositeFieldContainer[FactorDistribution]
    def __init__(self, num_images: _Optional[int] = ..., mean_tokens: _Optional[float] = ..., factors: _Optional[_Iterable[_Union[FactorDistribution, _Mapping]]] = ...) -> None: ...

class FactorDistribution(_message.Message):
    __slots__ = ("share", "sigma_deciles")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SIGMA_DECILES_FIELD_NUMBER: _ClassVar[int]
    share: float
    sigma_deciles: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, share: _Optional[float] = ..., sigma_deciles: _Optional[_Iterable[float]] = ...) -> None: ...

class ImagePlan(_message.Message):
    __slots__ = ("factor", "num_tokens", "sigmas")
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SIGMAS_FIELD_NUMBER: _ClassVar[int]
    factor: int
    num_tokens: int
    sigmas: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, factor: _Optional[int] = ..., num_tokens: _Optional[int] = ..., sigmas: _Optional[_Iterable[float]] = ...) -> None: ...
