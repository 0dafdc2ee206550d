from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Granularity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRANULARITY_UNSPECIFIED: _ClassVar[Granularity]
    GRANULARITY_TENSOR: _ClassVar[Granularity]
    GRANULARITY_CHANNEL: _ClassVar[Granularity]
    GRANULARITY_GROUP: _ClassVar[Granularity]
    GRANULARITY_ROWS: _ClassVar[Granularity]
    GRANULARITY_AGQ: _ClassVar[Granularity]

class Axis(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AXIS_UNSPECIFIED: _ClassVar[Axis]
    AXIS_OUT: _ClassVar[Axis]
    AXIS_IN: _ClassVar[Axis]
GRANULARITY_UNSPECIFIED: Granularity
GRANULARITY_TENSOR: Granularity
GRANULARITY_CHANNEL: Granularity
GRANULARITY_GROUP: Granularity
GRANULARITY_ROWS: Granularity
GRANULARITY_AGQ: Granularity
AXIS_UNSPECIFIED: Axis
AXIS_OUT: Axis
AXIS_IN: Axis

class Block(_message.Message):
    __slots__ = ("share", "group_size", "num_channels")
    SHARE_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_CHANNELS_FIELD_NUMBER: _ClassVar[int]
    share: float
    group_size: int
    num_channels: int
    def __init__(self, share: _Optional[float] = ..., group_size: _Optional[int] = ..., num_channels: _Optional[int] = ...) -> None: ...

class Scheme(_message.Message):
    __slots__ = ("bits", "granularity", "group_size", "symmetric", "num_rows", "blocks", "axis")
    BITS_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    SYMMETRIC_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    bits: int
    granularity: Granularity
    group_size: int
    symmetric: bool
    num_rows: int
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    axis: Axis
    def __init__(self, bits: _Optional[int] = ..., granularity: _Optional[_Union[Granularity, str]] = ..., group_size: _Optional[int] = ..., symmetric: bool = ..., num_rows: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ..., axis: _Optional[_Union[Axis, str]] = ...) -> None: ...

class QuantizedModel(_message.Message):
    __slots__ = ("scheme", "num_codes", "code_bytes_packed", "code_bytes_compressed")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    NUM_CODES_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_PACKED_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    scheme: Scheme
    num_codes: int
    code_bytes_packed: int
    code_bytes_compressed: int
    def __init__(self, scheme: _Optional[_Union[Scheme, _Mapping]] = ..., num_codes: _Optional[int] = ..., code_bytes_packed: _Optional[int] = ..., code_bytes_compressed: _Optional[int] = ...) -> None: ...

class PartReport(_message.Message):
    __slots__ = ("part", "num_weights", "code_bytes_packed", "code_bytes_compressed", "cr_codes", "bits_per_weight", "bytes_on_disk", "entropy_bits_per_code")
    PART_FIELD_NUMBER: _ClassVar[int]
    NUM_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_PACKED_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    CR_CODES_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_ON_DISK_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_BITS_PER_CODE_FIELD_NUMBER: _ClassVar[int]
    part: str
    num_weights: int
    code_bytes_packed: int
    code_bytes_compressed: int
    cr_codes: float
    bits_per_weight: float
    bytes_on_disk: int
    entropy_bits_per_code: float
    def __init__(self, part: _Optional[str] = ..., num_weights: _Optional[int] = ..., code_bytes_packed: _Optional[int] = ..., code_bytes_compressed: _Optional[int] = ..., cr_codes: _Optional[float] = ..., bits_per_weight: _Optional[float] = ..., bytes_on_disk: _Optional[int] = ..., entropy_bits_per_code: _Optional[float] = ...) -> None: ...
