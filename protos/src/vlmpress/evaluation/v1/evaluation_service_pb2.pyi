from vlmpress.evaluation.v1 import evaluation_pb2 as _evaluation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScorePredictionsRequest(_message.Message):
    __slots__ = ("predictions",)
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[_evaluation_pb2.Prediction]
    def __init__(self, predictions: _Optional[_Iterable[_Union[_evaluation_pb2.Prediction, _Mapping]]] = ...) -> None: ...

class ScorePredictionsResponse(_message.Message):
    __slots__ = ("score", "score_by_type")
    class ScoreByTypeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _evaluation_pb2.Score
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_evaluation_pb2.Score, _Mapping]] = ...) -> None: ...
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORE_BY_TYPE_FIELD_NUMBER: _ClassVar[int]
    score: _evaluation_pb2.Score
    score_by_type: _containers.MessageMap[str, _evaluation_pb2.Score]
    def __init__(self, score: _Optional[_Union[_evaluation_pb2.Score, _Mapping]] = ..., score_by_type: _Optional[_Mapping[str, _evaluation_pb2.Score]] = ...) -> None: ...
