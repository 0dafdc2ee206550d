from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class EdgeModel(_message.Message):
    __slots__ = ("vision_encoder", "compressor", "fusion", "num_visual_tokens", "num_compressed_tokens", "fusion_order", "num_fusion_layers")
    VISION_ENCODER_FIELD_NUMBER: _ClassVar[int]
    COMPRESSOR_FIELD_NUMBER: _ClassVar[int]
    FUSION_FIELD_NUMBER: _ClassVar[int]
    NUM_VISUAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPRESSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FUSION_ORDER_FIELD_NUMBER: _ClassVar[int]
    NUM_FUSION_LAYERS_FIELD_NUMBER: _ClassVar[int]
    vision_encoder: str
    compressor: str
    fusion: str
    num_visual_tokens: int
    num_compressed_tokens: int
    fusion_order: str
    num_fusion_layers: int
    def __init__(self, vision_encoder: _Optional[str] = ..., compressor: _Optional[str] = ..., fusion: _Optional[str] = ..., num_visual_tokens: _Optional[int] = ..., num_compressed_tokens: _Optional[int] = ..., fusion_order: _Optional[str] = ..., num_fusion_layers: _Optional[int] = ...) -> None: ...
