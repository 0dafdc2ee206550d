from vlmpress.quantpack.v1 import quantpack_pb2 as _quantpack_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InspectRequest(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    def __init__(self, artifact: _Optional[str] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("scheme", "parts")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    scheme: _quantpack_pb2.Scheme
    parts: _containers.RepeatedCompositeFieldContainer[_quantpack_pb2.PartReport]
    def __init__(self, scheme: _Optional[_Union[_quantpack_pb2.Scheme, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[_quantpack_pb2.PartReport, _Mapping]]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("artifact",)
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    artifact: str
    def __init__(self, artifact: _Optional[str] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("ok", "fault")
    OK_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    fault: str
    def __init__(self, ok: bool = ..., fault: _Optional[str] = ...) -> None: ...
