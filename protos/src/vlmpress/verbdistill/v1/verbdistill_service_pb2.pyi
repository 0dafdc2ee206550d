from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

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

class VerbalizeRequest(_message.Message):
    __slots__ = ("model", "verbalizers", "image", "question", "max_words", "num_likeliest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERBALIZERS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    MAX_WORDS_FIELD_NUMBER: _ClassVar[int]
    NUM_LIKELIEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    verbalizers: str
    image: bytes
    question: str
    max_words: int
    num_likeliest: int
    def __init__(self, model: _Optional[str] = ..., verbalizers: _Optional[str] = ..., image: _Optional[bytes] = ..., question: _Optional[str] = ..., max_words: _Optional[int] = ..., num_likeliest: _Optional[int] = ...) -> None: ...

class VerbalizeResponse(_message.Message):
    __slots__ = ("layers", "answer")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerSpeech]
    answer: LayerSpeech
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerSpeech, _Mapping]]] = ..., answer: _Optional[_Union[LayerSpeech, _Mapping]] = ...) -> None: ...

class LayerSpeech(_message.Message):
    __slots__ = ("layer", "text", "first_words")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIRST_WORDS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    text: str
    first_words: _containers.RepeatedCompositeFieldContainer[WordProbability]
    def __init__(self, layer: _Optional[int] = ..., text: _Optional[str] = ..., first_words: _Optional[_Iterable[_Union[WordProbability, _Mapping]]] = ...) -> None: ...

class WordProbability(_message.Message):
    __slots__ = ("word", "probability")
    WORD_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    word: str
    probability: float
    def __init__(self, word: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...
