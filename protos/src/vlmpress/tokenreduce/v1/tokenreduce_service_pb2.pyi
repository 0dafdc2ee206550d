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
