from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerbalizerKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERBALIZER_KIND_UNSPECIFIED: _ClassVar[VerbalizerKind]
    VERBALIZER_KIND_VERB_FFN: _ClassVar[VerbalizerKind]
    VERBALIZER_KIND_MLP: _ClassVar[VerbalizerKind]
    VERBALIZER_KIND_FFN: _ClassVar[VerbalizerKind]
    VERBALIZER_KIND_DECODER: _ClassVar[VerbalizerKind]
VERBALIZER_KIND_UNSPECIFIED: VerbalizerKind
VERBALIZER_KIND_VERB_FFN: VerbalizerKind
VERBALIZER_KIND_MLP: VerbalizerKind
VERBALIZER_KIND_FFN: VerbalizerKind
VERBALIZER_KIND_DECODER: VerbalizerKind

class Verbalizers(_message.Message):
    __slots__ = ("layers", "hidden_size", "kind", "depth", "out_size", "is_bare")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    OUT_SIZE_FIELD_NUMBER: _ClassVar[int]
    IS_BARE_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    hidden_size: int
    kind: VerbalizerKind
    depth: int
    out_size: int
    is_bare: bool
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., hidden_size: _Optional[int] = ..., kind: _Optional[_Union[VerbalizerKind, str]] = ..., depth: _Optional[int] = ..., out_size: _Optional[int] = ..., is_bare: bool = ...) -> None: ...

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
