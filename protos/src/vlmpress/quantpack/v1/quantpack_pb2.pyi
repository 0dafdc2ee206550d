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

class Rounding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUNDING_UNSPECIFIED: _ClassVar[Rounding]
    ROUNDING_NEAREST: _ClassVar[Rounding]
    ROUNDING_GPTQ: _ClassVar[Rounding]

class Embeddings(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EMBEDDINGS_UNSPECIFIED: _ClassVar[Embeddings]
    EMBEDDINGS_KEEP: _ClassVar[Embeddings]
    EMBEDDINGS_INT4: _ClassVar[Embeddings]
GRANULARITY_UNSPECIFIED: Granularity
GRANULARITY_TENSOR: Granularity
GRANULARITY_CHANNEL: Granularity
GRANULARITY_GROUP: Granularity
GRANULARITY_ROWS: Granularity
GRANULARITY_AGQ: Granularity
AXIS_UNSPECIFIED: Axis
AXIS_OUT: Axis
AXIS_IN: Axis
ROUNDING_UNSPECIFIED: Rounding
ROUNDING_NEAREST: Rounding
ROUNDING_GPTQ: Rounding
EMBEDDINGS_UNSPECIFIED: Embeddings
EMBEDDINGS_KEEP: Embeddings
EMBEDDINGS_INT4: Embeddings

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

class Rtn(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Gptq(_message.Message):
    __slots__ = ("damping", "block_size", "activation_order")
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_ORDER_FIELD_NUMBER: _ClassVar[int]
    damping: float
    block_size: int
    activation_order: bool
    def __init__(self, damping: _Optional[float] = ..., block_size: _Optional[int] = ..., activation_order: bool = ...) -> None: ...

class Awq(_message.Message):
    __slots__ = ("num_ratios", "num_clips")
    NUM_RATIOS_FIELD_NUMBER: _ClassVar[int]
    NUM_CLIPS_FIELD_NUMBER: _ClassVar[int]
    num_ratios: int
    num_clips: int
    def __init__(self, num_ratios: _Optional[int] = ..., num_clips: _Optional[int] = ...) -> None: ...

class SmoothQuant(_message.Message):
    __slots__ = ("alpha",)
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    def __init__(self, alpha: _Optional[float] = ...) -> None: ...

class Mbq(_message.Message):
    __slots__ = ("num_ratios",)
    NUM_RATIOS_FIELD_NUMBER: _ClassVar[int]
    num_ratios: int
    def __init__(self, num_ratios: _Optional[int] = ...) -> None: ...

class Ecm(_message.Message):
    __slots__ = ("alpha", "rounding")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    rounding: Rounding
    def __init__(self, alpha: _Optional[float] = ..., rounding: _Optional[_Union[Rounding, str]] = ...) -> None: ...

class Method(_message.Message):
    __slots__ = ("rtn", "gptq", "awq", "smoothquant", "mbq", "ecm")
    RTN_FIELD_NUMBER: _ClassVar[int]
    GPTQ_FIELD_NUMBER: _ClassVar[int]
    AWQ_FIELD_NUMBER: _ClassVar[int]
    SMOOTHQUANT_FIELD_NUMBER: _ClassVar[int]
    MBQ_FIELD_NUMBER: _ClassVar[int]
    ECM_FIELD_NUMBER: _ClassVar[int]
    rtn: Rtn
    gptq: Gptq
    awq: Awq
    smoothquant: SmoothQuant
    mbq: Mbq
    ecm: Ecm
    def __init__(self, rtn: _Optional[_Union[Rtn, _Mapping]] = ..., gptq: _Optional[_Union[Gptq, _Mapping]] = ..., awq: _Optional[_Union[Awq, _Mapping]] = ..., smoothquant: _Optional[_Union[SmoothQuant, _Mapping]] = ..., mbq: _Optional[_Union[Mbq, _Mapping]] = ..., ecm: _Optional[_Union[Ecm, _Mapping]] = ...) -> None: ...

class PartRecipe(_message.Message):
    __slots__ = ("scheme", "method")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    scheme: Scheme
    method: Method
    def __init__(self, scheme: _Optional[_Union[Scheme, _Mapping]] = ..., method: _Optional[_Union[Method, _Mapping]] = ...) -> None: ...

class Keep(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PartChoice(_message.Message):
    __slots__ = ("recipe", "keep")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    recipe: PartRecipe
    keep: Keep
    def __init__(self, recipe: _Optional[_Union[PartRecipe, _Mapping]] = ..., keep: _Optional[_Union[Keep, _Mapping]] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("default", "vision", "language", "other", "embeddings", "tensors")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Scheme
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Scheme, _Mapping]] = ...) -> None: ...
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    VISION_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    default: PartRecipe
    vision: PartChoice
    language: PartChoice
    other: PartChoice
    embeddings: Embeddings
    tensors: _containers.MessageMap[str, Scheme]
    def __init__(self, default: _Optional[_Union[PartRecipe, _Mapping]] = ..., vision: _Optional[_Union[PartChoice, _Mapping]] = ..., language: _Optional[_Union[PartChoice, _Mapping]] = ..., other: _Optional[_Union[PartChoice, _Mapping]] = ..., embeddings: _Optional[_Union[Embeddings, str]] = ..., tensors: _Optional[_Mapping[str, Scheme]] = ...) -> None: ...

class EcmSearch(_message.Message):
    __slots__ = ("max_accuracy_drop", "bits", "group_size", "axis", "rounding")
    MAX_ACCURACY_DROP_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_FIELD_NUMBER: _ClassVar[int]
    max_accuracy_drop: float
    bits: int
    group_size: int
    axis: Axis
    rounding: Rounding
    def __init__(self, max_accuracy_drop: _Optional[float] = ..., bits: _Optional[int] = ..., group_size: _Optional[int] = ..., axis: _Optional[_Union[Axis, str]] = ..., rounding: _Optional[_Union[Rounding, str]] = ...) -> None: ...

class SweepSetting(_message.Message):
    __slots__ = ("name", "kind", "recipe")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    recipe: Recipe
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ...) -> None: ...

class QuantizedModel(_message.Message):
    __slots__ = ("scheme", "num_codes", "code_bytes_packed", "code_bytes_compressed", "recipe")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    NUM_CODES_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_PACKED_FIELD_NUMBER: _ClassVar[int]
    CODE_BYTES_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    scheme: Scheme
    num_codes: int
    code_bytes_packed: int
    code_bytes_compressed: int
    recipe: Recipe
    def __init__(self, scheme: _Optional[_Union[Scheme, _Mapping]] = ..., num_codes: _Optional[int] = ..., code_bytes_packed: _Optional[int] = ..., code_bytes_compressed: _Optional[int] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ...) -> None: ...

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
