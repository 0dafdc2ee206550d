from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Stage(_message.Message):
    __slots__ = ("fraction", "layer", "stride", "trainable", "learning_rate_scale", "compressor", "batch_size_scale")
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_SCALE_FIELD_NUMBER: _ClassVar[int]
    COMPRESSOR_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_SCALE_FIELD_NUMBER: _ClassVar[int]
    fraction: float
    layer: int
    stride: int
    trainable: _containers.RepeatedScalarFieldContainer[str]
    learning_rate_scale: float
    compressor: str
    batch_size_scale: float
    def __init__(self, fraction: _Optional[float] = ..., layer: _Optional[int] = ..., stride: _Optional[int] = ..., trainable: _Optional[_Iterable[str]] = ..., learning_rate_scale: _Optional[float] = ..., compressor: _Optional[str] = ..., batch_size_scale: _Optional[float] = ...) -> None: ...

class StageSchedule(_message.Message):
    __slots__ = ("name", "stages", "restarts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    restarts: bool
    def __init__(self, name: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ..., restarts: bool = ...) -> None: ...

class StageCost(_message.Message):
    __slots__ = ("stage", "visual_tokens", "cr_percent", "prefill_tflops")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    VISUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CR_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TFLOPS_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    visual_tokens: int
    cr_percent: float
    prefill_tflops: float
    def __init__(self, stage: _Optional[_Union[Stage, _Mapping]] = ..., visual_tokens: _Optional[int] = ..., cr_percent: _Optional[float] = ..., prefill_tflops: _Optional[float] = ...) -> None: ...

class AverageCost(_message.Message):
    __slots__ = ("visual_tokens", "cr_percent", "prefill_tflops")
    VISUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CR_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TFLOPS_FIELD_NUMBER: _ClassVar[int]
    visual_tokens: float
    cr_percent: float
    prefill_tflops: float
    def __init__(self, visual_tokens: _Optional[float] = ..., cr_percent: _Optional[float] = ..., prefill_tflops: _Optional[float] = ...) -> None: ...

class DecoderShape(_message.Message):
    __slots__ = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_ATTENTION_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_KEY_VALUE_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    def __init__(self, hidden_size: _Optional[int] = ..., intermediate_size: _Optional[int] = ..., num_attention_heads: _Optional[int] = ..., num_key_value_heads: _Optional[int] = ..., head_dim: _Optional[int] = ...) -> None: ...
