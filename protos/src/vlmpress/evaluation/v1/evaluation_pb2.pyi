from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Prediction(_message.Message):
    __slots__ = ("index", "question_type", "expected", "answer")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    QUESTION_TYPE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    index: int
    question_type: str
    expected: str
    answer: str
    def __init__(self, index: _Optional[int] = ..., question_type: _Optional[str] = ..., expected: _Optional[str] = ..., answer: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("num_questions", "accuracy")
    NUM_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    num_questions: int
    accuracy: float
    def __init__(self, num_questions: _Optional[int] = ..., accuracy: _Optional[float] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("model", "dataset", "score", "score_by_type")
    class ScoreByTypeEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Score
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Score, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SCORE_BY_TYPE_FIELD_NUMBER: _ClassVar[int]
    model: str
    dataset: str
    score: Score
    score_by_type: _containers.MessageMap[str, Score]
    def __init__(self, model: _Optional[str] = ..., dataset: _Optional[str] = ..., score: _Optional[_Union[Score, _Mapping]] = ..., score_by_type: _Optional[_Mapping[str, Score]] = ...) -> None: ...
