from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Dataset(_message.Message):
    __slots__ = ("name", "num_train", "num_test", "question_only_accuracy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_TRAIN_FIELD_NUMBER: _ClassVar[int]
    NUM_TEST_FIELD_NUMBER: _ClassVar[int]
    QUESTION_ONLY_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_train: int
    num_test: int
    question_only_accuracy: float
    def __init__(self, name: _Optional[str] = ..., num_train: _Optional[int] = ..., num_test: _Optional[int] = ..., question_only_accuracy: _Optional[float] = ...) -> None: ...
