import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vlmpress.quantpack.v1 import quantpack_pb2 as _quantpack_pb2
from vlmpress.stagetrain.v1 import stagetrain_pb2 as _stagetrain_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_PENDING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_PENDING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class JobSpec(_message.Message):
    __slots__ = ("pack", "pipeline", "sweep", "train", "distill", "evaluate", "pareto")
    PACK_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    SWEEP_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    DISTILL_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    PARETO_FIELD_NUMBER: _ClassVar[int]
    pack: PackJob
    pipeline: PipelineJob
    sweep: SweepJob
    train: TrainJob
    distill: DistillJob
    evaluate: EvaluateJob
    pareto: ParetoJob
    def __init__(self, pack: _Optional[_Union[PackJob, _Mapping]] = ..., pipeline: _Optional[_Union[PipelineJob, _Mapping]] = ..., sweep: _Optional[_Union[SweepJob, _Mapping]] = ..., train: _Optional[_Union[TrainJob, _Mapping]] = ..., distill: _Optional[_Union[DistillJob, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateJob, _Mapping]] = ..., pareto: _Optional[_Union[ParetoJob, _Mapping]] = ...) -> None: ...

class PackJob(_message.Message):
    __slots__ = ("model", "scheme", "recipe", "search", "dataset", "num_samples", "num_questions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    scheme: _quantpack_pb2.Scheme
    recipe: _quantpack_pb2.Recipe
    search: _quantpack_pb2.EcmSearch
    dataset: str
    num_samples: int
    num_questions: int
    def __init__(self, model: _Optional[str] = ..., scheme: _Optional[_Union[_quantpack_pb2.Scheme, _Mapping]] = ..., recipe: _Optional[_Union[_quantpack_pb2.Recipe, _Mapping]] = ..., search: _Optional[_Union[_quantpack_pb2.EcmSearch, _Mapping]] = ..., dataset: _Optional[str] = ..., num_samples: _Optional[int] = ..., num_questions: _Optional[int] = ...) -> None: ...

class SweepJob(_message.Message):
    __slots__ = ("model", "dataset", "settings", "search", "num_samples", "num_questions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    dataset: str
    settings: _containers.RepeatedCompositeFieldContainer[_quantpack_pb2.SweepSetting]
    search: _quantpack_pb2.EcmSearch
    num_samples: int
    num_questions: int
    def __init__(self, model: _Optional[str] = ..., dataset: _Optional[str] = ..., settings: _Optional[_Iterable[_Union[_quantpack_pb2.SweepSetting, _Mapping]]] = ..., search: _Optional[_Union[_quantpack_pb2.EcmSearch, _Mapping]] = ..., num_samples: _Optional[int] = ..., num_questions: _Optional[int] = ...) -> None: ...

class PipelineJob(_message.Message):
    __slots__ = ("config_yaml",)
    CONFIG_YAML_FIELD_NUMBER: _ClassVar[int]
    config_yaml: str
    def __init__(self, config_yaml: _Optional[str] = ...) -> None: ...

class TrainJob(_message.Message):
    __slots__ = ("model", "dataset", "scheme", "schedule", "settings_yaml", "num_workers", "seed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_YAML_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model: str
    dataset: str
    scheme: str
    schedule: _stagetrain_pb2.StageSchedule
    settings_yaml: str
    num_workers: int
    seed: int
    def __init__(self, model: _Optional[str] = ..., dataset: _Optional[str] = ..., scheme: _Optional[str] = ..., schedule: _Optional[_Union[_stagetrain_pb2.StageSchedule, _Mapping]] = ..., settings_yaml: _Optional[str] = ..., num_workers: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class TrainProgress(_message.Message):
    __slots__ = ("stage", "num_stages", "step", "num_steps", "loss", "tokens_per_second", "seconds_left")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_STAGES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    stage: int
    num_stages: int
    step: int
    num_steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    def __init__(self, stage: _Optional[int] = ..., num_stages: _Optional[int] = ..., step: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class DistillJob(_message.Message):
    __slots__ = ("teacher", "student", "dataset", "teacher_verbalizers", "settings_yaml", "num_workers", "num_teachers", "seed")
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    TEACHER_VERBALIZERS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_YAML_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_TEACHERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    teacher: str
    student: str
    dataset: str
    teacher_verbalizers: str
    settings_yaml: str
    num_workers: int
    num_teachers: int
    seed: int
    def __init__(self, teacher: _Optional[str] = ..., student: _Optional[str] = ..., dataset: _Optional[str] = ..., teacher_verbalizers: _Optional[str] = ..., settings_yaml: _Optional[str] = ..., num_workers: _Optional[int] = ..., num_teachers: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class DistillProgress(_message.Message):
    __slots__ = ("phase", "phase_step", "num_phase_steps", "step", "num_steps", "loss", "seconds_left")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_PHASE_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    phase: str
    phase_step: int
    num_phase_steps: int
    step: int
    num_steps: int
    loss: float
    seconds_left: float
    def __init__(self, phase: _Optional[str] = ..., phase_step: _Optional[int] = ..., num_phase_steps: _Optional[int] = ..., step: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class EvaluateJob(_message.Message):
    __slots__ = ("model", "dataset", "max_new_tokens", "shard_questions", "num_workers", "cpus_per_worker", "gpus_per_worker")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARD_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    CPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    GPUS_PER_WORKER_FIELD_NUMBER: _ClassVar[int]
    model: str
    dataset: str
    max_new_tokens: int
    shard_questions: int
    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    def __init__(self, model: _Optional[str] = ..., dataset: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., shard_questions: _Optional[int] = ..., num_workers: _Optional[int] = ..., cpus_per_worker: _Optional[float] = ..., gpus_per_worker: _Optional[float] = ...) -> None: ...

class ParetoJob(_message.Message):
    __slots__ = ("config_yaml",)
    CONFIG_YAML_FIELD_NUMBER: _ClassVar[int]
    config_yaml: str
    def __init__(self, config_yaml: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "spec", "state", "create_time", "update_time", "progress", "message", "result", "revision", "train_progress", "distill_progress", "attempt", "log")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TRAIN_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DISTILL_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    spec: JobSpec
    state: JobState
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    progress: float
    message: str
    result: str
    revision: int
    train_progress: TrainProgress
    distill_progress: DistillProgress
    attempt: int
    log: str
    def __init__(self, job_id: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., state: _Optional[_Union[JobState, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., progress: _Optional[float] = ..., message: _Optional[str] = ..., result: _Optional[str] = ..., revision: _Optional[int] = ..., train_progress: _Optional[_Union[TrainProgress, _Mapping]] = ..., distill_progress: _Optional[_Union[DistillProgress, _Mapping]] = ..., attempt: _Optional[int] = ..., log: _Optional[str] = ...) -> None: ...
