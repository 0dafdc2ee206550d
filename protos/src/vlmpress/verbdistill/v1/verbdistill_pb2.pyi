from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Verbalizers(_message.Message):
    __slots__ = ("layers", "hidden_size")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    hidden_size: int
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., hidden_size: _Optional[int] = ...) -> None: ...

class Distillation(_message.Message):
    __slots__ = ("student_layers", "teacher_layers", "num_verbalization_steps", "num_interaction_steps", "num_sft_steps", "temperature_scale")
    STUDENT_LAYERS_FIELD_NUMBER: _ClassVar[int]
    TEACHER_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_VERBALIZATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_INTERACTION_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_SFT_STEPS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_SCALE_FIELD_NUMBER: _ClassVar[int]
    student_layers: _containers.RepeatedScalarFieldContainer[int]
    teacher_layers: _containers.RepeatedScalarFieldContainer[int]
    num_verbalization_steps: int
    num_interaction_steps: int
    num_sft_steps: int
    temperature_scale: float
    def __init__(self, student_layers: _Optional[_Iterable[int]] = ..., teacher_layers: _Optional[_Iterable[int]] = ..., num_verbalization_steps: _Optional[int] = ..., num_interaction_steps: _Optional[int] = ..., num_sft_steps: _Optional[int] = ..., temperature_scale: _Optional[float] = ...) -> None: ...
