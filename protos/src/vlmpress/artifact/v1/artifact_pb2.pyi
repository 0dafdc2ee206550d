from vlmpress.dataset.v1 import dataset_pb2 as _dataset_pb2
from vlmpress.edgevlm.v1 import edgevlm_pb2 as _edgevlm_pb2
from vlmpress.evaluation.v1 import evaluation_pb2 as _evaluation_pb2
from vlmpress.quantpack.v1 import quantpack_pb2 as _quantpack_pb2
from vlmpress.stagetrain.v1 import stagetrain_pb2 as _stagetrain_pb2
from vlmpress.tokenreduce.v1 import tokenreduce_pb2 as _tokenreduce_pb2
from vlmpress.verbdistill.v1 import verbdistill_pb2 as _verbdistill_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Manifest(_message.Message):
    __slots__ = ("format_version", "kind", "dataset", "model", "quantized_model", "reduction_policy", "stage_schedule", "verbalizers", "distillation", "edge_model", "evaluation", "report", "log", "files", "parents", "producer", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_MODEL_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_POLICY_FIELD_NUMBER: _ClassVar[int]
    STAGE_SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    VERBALIZERS_FIELD_NUMBER: _ClassVar[int]
    DISTILLATION_FIELD_NUMBER: _ClassVar[int]
    EDGE_MODEL_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    kind: str
    dataset: _dataset_pb2.Dataset
    model: Model
    quantized_model: _quantpack_pb2.QuantizedModel
    reduction_policy: _tokenreduce_pb2.ReductionPolicy
    stage_schedule: _stagetrain_pb2.StageSchedule
    verbalizers: _verbdistill_pb2.Verbalizers
    distillation: _verbdistill_pb2.Distillation
    edge_model: _edgevlm_pb2.EdgeModel
    evaluation: _evaluation_pb2.Evaluation
    report: Report
    log: Log
    files: _containers.RepeatedCompositeFieldContainer[File]
    parents: _containers.RepeatedCompositeFieldContainer[Parent]
    producer: Producer
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, format_version: _Optional[int] = ..., kind: _Optional[str] = ..., dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., quantized_model: _Optional[_Union[_quantpack_pb2.QuantizedModel, _Mapping]] = ..., reduction_policy: _Optional[_Union[_tokenreduce_pb2.ReductionPolicy, _Mapping]] = ..., stage_schedule: _Optional[_Union[_stagetrain_pb2.StageSchedule, _Mapping]] = ..., verbalizers: _Optional[_Union[_verbdistill_pb2.Verbalizers, _Mapping]] = ..., distillation: _Optional[_Union[_verbdistill_pb2.Distillation, _Mapping]] = ..., edge_model: _Optional[_Union[_edgevlm_pb2.EdgeModel, _Mapping]] = ..., evaluation: _Optional[_Union[_evaluation_pb2.Evaluation, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., parents: _Optional[_Iterable[_Union[Parent, _Mapping]]] = ..., producer: _Optional[_Union[Producer, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "sha256", "size_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    size_bytes: int
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Parent(_message.Message):
    __slots__ = ("role", "digest")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    role: str
    digest: str
    def __init__(self, role: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class Producer(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("model_type", "num_params")
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMS_FIELD_NUMBER: _ClassVar[int]
    model_type: str
    num_params: int
    def __init__(self, model_type: _Optional[str] = ..., num_params: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("title",)
    TITLE_FIELD_NUMBER: _ClassVar[int]
    title: str
    def __init__(self, title: _Optional[str] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: str
    def __init__(self, source: _Optional[str] = ...) -> None: ...
