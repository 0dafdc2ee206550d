from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class MatchLayersRequest(_message.Message):
    __slots__ = ("num_student_targets", "num_teacher_targets", "kld", "scale", "seed")
    NUM_STUDENT_TARGETS_FIELD_NUMBER: _ClassVar[int]
    NUM_TEACHER_TARGETS_FIELD_NUMBER: _ClassVar[int]
    KLD_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    num_student_targets: int
    num_teacher_targets: int
    kld: _containers.RepeatedScalarFieldContainer[float]
    scale: float
    seed: int
    def __init__(self, num_student_targets: _Optional[int] = ..., num_teacher_targets: _Optional[int] = ..., kld: _Optional[_Iterable[float]] = ..., scale: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class MatchLayersResponse(_message.Message):
    __slots__ = ("teacher_targets",)
    TEACHER_TARGETS_FIELD_NUMBER: _ClassVar[int]
    teacher_targets: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, teacher_targets: _Optional[_Iterable[int]] = ...) -> None: ...
