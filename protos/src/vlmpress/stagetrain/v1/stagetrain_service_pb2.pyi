from vlmpress.stagetrain.v1 import stagetrain_pb2 as _stagetrain_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PlanScheduleRequest(_message.Message):
    __slots__ = ("scheme", "schedule", "num_layers", "num_visual_tokens", "shape", "num_text_tokens")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_VISUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    scheme: str
    schedule: _stagetrain_pb2.StageSchedule
    num_layers: int
    num_visual_tokens: int
    shape: _stagetrain_pb2.DecoderShape
    num_text_tokens: int
    def __init__(self, scheme: _Optional[str] = ..., schedule: _Optional[_Union[_stagetrain_pb2.StageSchedule, _Mapping]] = ..., num_layers: _Optional[int] = ..., num_visual_tokens: _Optional[int] = ..., shape: _Optional[_Union[_stagetrain_pb2.DecoderShape, _Mapping]] = ..., num_text_tokens: _Optional[int] = ...) -> None: ...

class PlanScheduleResponse(_message.Message):
    __slots__ = ("schedule", "costs", "average")
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    schedule: _stagetrain_pb2.StageSchedule
    costs: _containers.RepeatedCompositeFieldContainer[_stagetrain_pb2.StageCost]
    average: _stagetrain_pb2.AverageCost
    def __init__(self, schedule: _Optional[_Union[_stagetrain_pb2.StageSchedule, _Mapping]] = ..., costs: _Optional[_Iterable[_Union[_stagetrain_pb2.StageCost, _Mapping]]] = ..., average: _Optional[_Union[_stagetrain_pb2.AverageCost, _Mapping]] = ...) -> None: ...
