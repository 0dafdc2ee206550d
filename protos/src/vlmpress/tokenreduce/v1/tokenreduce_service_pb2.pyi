from vlmpress.tokenreduce.v1 import tokenreduce_pb2 as _tokenreduce_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Features(_message.Message):
    __slots__ = ("shape", "data")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("features", "policy")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    features: Features
    policy: _tokenreduce_pb2.ReductionPolicy
    def __init__(self, features: _Optional[_Union[Features, _Mapping]] = ..., policy: _Optional[_Union[_tokenreduce_pb2.ReductionPolicy, _Mapping]] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("images", "mean_tokens")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MEAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[_tokenreduce_pb2.ImagePlan]
    mean_tokens: float
    def __init__(self, images: _Optional[_Iterable[_Union[_tokenreduce_pb2.ImagePlan, _Mapping]]] = ..., mean_tokens: _Optional[float] = ...) -> None: ...

class CalibrationSettings(_message.Message):
    __slots__ = ("mean_tokens", "shares", "mode", "factors", "normalization")
    MEAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    mean_tokens: float
    shares: FactorShares
    mode: _tokenreduce_pb2.Mode
    factors: _containers.RepeatedScalarFieldContainer[int]
    normalization: _tokenreduce_pb2.Normalization
    def __init__(self, mean_tokens: _Optional[float] = ..., shares: _Optional[_Union[FactorShares, _Mapping]] = ..., mode: _Optional[_Union[_tokenreduce_pb2.Mode, str]] = ..., factors: _Optional[_Iterable[int]] = ..., normalization: _Optional[_Union[_tokenreduce_pb2.Normalization, str]] = ...) -> None: ...

class FactorShares(_message.Message):
    __slots__ = ("shares",)
    SHARES_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, shares: _Optional[_Iterable[float]] = ...) -> None: ...

class CalibrateRequest(_message.Message):
    __slots__ = ("settings", "features")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    settings: CalibrationSettings
    features: Features
    def __init__(self, settings: _Optional[_Union[CalibrationSettings, _Mapping]] = ..., features: _Optional[_Union[Features, _Mapping]] = ...) -> None: ...

class CalibrateResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: _tokenreduce_pb2.ReductionPolicy
    def __init__(self, policy: _Optional[_Union[_tokenreduce_pb2.ReductionPolicy, _Mapping]] = ...) -> None: ...

class BudgetRequest(_message.Message):
    __slots__ = ("features", "max_tokens", "factors", "normalization")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[Features]
    max_tokens: int
    factors: _containers.RepeatedScalarFieldContainer[int]
    normalization: _tokenreduce_pb2.Normalization
    def __init__(self, features: _Optional[_Iterable[_Union[Features, _Mapping]]] = ..., max_tokens: _Optional[int] = ..., factors: _Optional[_Iterable[int]] = ..., normalization: _Optional[_Union[_tokenreduce_pb2.Normalization, str]] = ...) -> None: ...

class BudgetResponse(_message.Message):
    __slots__ = ("images", "total_tokens")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[_tokenreduce_pb2.ImagePlan]
    total_tokens: int
    def __init__(self, images: _Optional[_Iterable[_Union[_tokenreduce_pb2.ImagePlan, _Mapping]]] = ..., total_tokens: _Optional[int] = ...) -> None: ...
