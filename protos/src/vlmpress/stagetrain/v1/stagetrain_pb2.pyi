from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(_message.Message):
    __slots__ = ("fraction", "layer", "stride", "trainable", "learning_rate_scale", "compressor")
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_SCALE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSOR_FIELD_NUMBER: _ClassVar[int]
    fraction: float
    layer: int
    stride: int
    trainable: _containers.RepeatedScalarFieldContainer[str]
    learning_rate_scale: float
    compressor: str
    def __init__(self, fraction: _Optional[float] = ..., layer: _Optional[int] = ..., stride: _Optional[int] = ..., trainable: _Optional[_Iterable[str]] = ..., learning_rate_scale: _Optional[float] = ..., compressor: _Optional[str] = ...) -> None: ...

class StageSchedule(_message.Message):
    __slots__ = ("name", "stages")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, name: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class StageCost(_message.Message):
    __slots__ = ("stage", "visual_tokens", "cr_percent")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    VISUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CR_PERCENT_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    visual_tokens: int
    cr_percent: float
    def __init__(self, stage: _Optional[_Union[Stage, _Mapping]] = ..., visual_tokens: _Optional[int] = ..., cr_percent: _Optional[float] = ...) -> None: ...
