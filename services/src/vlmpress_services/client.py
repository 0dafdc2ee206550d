"""Small synchronous clients; they hold nothing but an address until the first call, so they can be pickled."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import grpc

from vlmpress.artifact.v1 import artifact_pb2, artifact_service_pb2, artifact_service_pb2_grpc
from vlmpress.edgevlm.v1 import edgevlm_service_pb2, edgevlm_service_pb2_grpc
from vlmpress.evaluation.v1 import evaluation_pb2, evaluation_service_pb2, evaluation_service_pb2_grpc
from vlmpress.job.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from vlmpress_services.errors import InvalidRequestError, ServiceError
from vlmpress_services.scoring import Prediction, Score, Scores

MAX_MESSAGE_BYTES = 16 << 20
DEFAULT_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModelInfo:
    """What the server loaded: digest of the artifact, parameters (tied ones once), Hugging Face model type."""

    digest: str
    num_params: int
    model_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        text: The answer.
        num_visual_tokens: Visual tokens the language model saw.
        num_prompt_tokens: Tokens of the prompt, visual tokens included.
        num_generated_tokens: The end token included.
        ttft_s: Time from the call to its first token, as the client saw it.
    """

    text: str
    num_visual_tokens: int
    num_prompt_tokens: int
    num_generated_tokens: int
    ttft_s: float


class Client:
    """An address and, from the first call on, a channel to it; usable as a context manager."""

    def __init__(self, address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._channel: grpc.Channel | None = None

    def close(self) -> None:
        """Closes the channel; the next call opens another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["address"], timeout_s=state["timeout_s"])  # type: ignore[misc]

    def _stub(self, make: Callable[[grpc.Channel], Any]) -> Any:
        if self._channel is None:
            limits = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
            self._channel = grpc.insecure_channel(self.address, options=limits)
        return make(self._channel)


class EdgeVlmClient(Client):
    """Asks models of the store about images."""

    def load(self, ref: str) -> LoadedModelInfo:
        """Loads a model by digest or tag; raises ServiceError."""
        request = edgevlm_service_pb2.LoadModelRequest(model=ref)
        with _typed_errors():
            stub = self._stub(edgevlm_service_pb2_grpc.EdgeVlmServiceStub)
            response = stub.LoadModel(request, timeout=LOAD_TIMEOUT_S)
        return LoadedModelInfo(digest=response.digest, num_params=response.num_params, model_type=response.model_type)

    def generate(
        self,
        ref: str,
        images: bytes | Sequence[bytes] | None,
        prompt: str,
        max_new_tokens: int,
        max_visual_tokens: int | None = None,
    ) -> Answer:
        """The greedy answer to one question about encoded images, with at most so many visual tokens.

        Raises:
            InvalidRequestError: max_visual_tokens is below 1; on the wire 0 would mean no limit.
            ServiceError: The call failed, or its time was over before the answer was whole.
        """
        if max_visual_tokens is not None and max_visual_tokens < 1:
            raise InvalidRequestError(f"max_visual_tokens: expected at least 1 or None, got {max_visual_tokens}")
        request = edgevlm_service_pb2.GenerateRequest(
            model=ref,
            images=[images] if isinstance(images, bytes) else images or (),
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            max_visual_tokens=max_visual_tokens or 0,
        )
        start_s = time.perf_counter()
        ttft_s, finish = 0.0, None
        with _typed_errors():
            for response in self._stub(edgevlm_service_pb2_grpc.EdgeVlmServiceStub).Generate(
                request, timeout=self.timeout_s
            ):
                ttft_s = ttft_s or time.perf_counter() - start_s
                if response.HasField("finish"):
                    finish = response.finish
        if finish is None:
            raise ServiceError("DATA_LOSS", "Generate: the stream ended without a finish event")
        if finish.reason == edgevlm_service_pb2.FINISH_REASON_DEADLINE:
            raise ServiceError(
                "DEADLINE_EXCEEDED", f"Generate: expected an answer in {self.timeout_s} s, got {finish.text[:80]!r}"
            )
        return Answer(
            text=finish.text,
            num_visual_tokens=finish.num_visual_tokens,
            num_prompt_tokens=finish.num_prompt_tokens,
            num_generated_tokens=finish.num_generated_tokens,
            ttft_s=ttft_s,
        )


class EvaluationClient(Client):
    """Has answers scored."""

    def score(self, predictions: Iterable[Prediction]) -> Scores:
        """Exact-match accuracy over all and by question type; raises ServiceError."""
        items = [
            evaluation_pb2.Prediction(
                index=item.index, question_type=item.question_type, expected=item.expected, answer=item.answer
            )
            for item in predictions
        ]
        request = evaluation_service_pb2.ScorePredictionsRequest(predictions=items)
        with _typed_errors():
            response = self._stub(evaluation_service_pb2_grpc.EvaluationServiceStub).ScorePredictions(
                request, timeout=self.timeout_s
            )
        by_type = {name: _score(value) for name, value in sorted(response.score_by_type.items())}
        return Scores(overall=_score(response.score), by_type=by_type)


class ArtifactClient(Client):
    """Reads a server's artifacts."""

    def manifest(self, ref: str) -> tuple[str, artifact_pb2.Manifest]:
        """Digest and manifest of an artifact; raises ServiceError."""
        request = artifact_service_pb2.GetManifestRequest(artifact=ref)
        with _typed_errors():
            response = self._artifact_stub().GetManifest(request, timeout=self.timeout_s)
        return response.digest, response.manifest

    def list(self, kind: str = "") -> list[artifact_service_pb2.ArtifactSummary]:
        """One line an artifact; raises ServiceError."""
        request = artifact_service_pb2.ListArtifactsRequest(kind=kind)
        with _typed_errors():
            return list(self._artifact_stub().ListArtifacts(request, timeout=self.timeout_s).artifacts)

    def read_file(self, ref: str, path: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset on, piece by piece; raises ServiceError."""
        request = artifact_service_pb2.ReadFileRequest(artifact=ref, path=path, offset=offset)
        with _typed_errors():
            for response in self._artifact_stub().ReadFile(request, timeout=self.timeout_s):
                yield response.data

    def verify(self, ref: str) -> str:
        """Checks every byte on the server; the fault in one line, empty when there is none; raises ServiceError."""
        request = artifact_service_pb2.VerifyArtifactRequest(artifact=ref)
        with _typed_errors():
            return str(self._artifact_stub().VerifyArtifact(request, timeout=LOAD_TIMEOUT_S).fault)

    def _artifact_stub(self) -> Any:
        return self._stub(artifact_service_pb2_grpc.ArtifactServiceStub)


class JobClient(Client):
    """Starts and follows a server's jobs."""

    def create(self, spec: job_pb2.JobSpec, request_id: str) -> job_pb2.Job:
        """A new job, or the one that `request_id` made before; raises ServiceError."""
        request = job_service_pb2.CreateJobRequest(spec=spec, request_id=request_id)
        with _typed_errors():
            return self._job_stub().CreateJob(request, timeout=self.timeout_s).job

    def get(self, job_id: str) -> job_pb2.Job:
        """The job as it is now; raises ServiceError."""
        with _typed_errors():
            return self._job_stub().GetJob(job_service_pb2.GetJobRequest(job_id=job_id), timeout=self.timeout_s).job

    def list(self) -> list[job_pb2.Job]:
        """All jobs, newest first; raises ServiceError."""
        with _typed_errors():
            return list(self._job_stub().ListJobs(job_service_pb2.ListJobsRequest(), timeout=self.timeout_s).jobs)

    def cancel(self, job_id: str) -> job_pb2.Job:
        """Asks a job to stop; raises ServiceError."""
        with _typed_errors():
            return (
                self._job_stub().CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id), timeout=self.timeout_s).job
            )

    def watch(self, job_id: str, revision: int = 0) -> Iterator[job_pb2.Job]:
        """The job at every change after a revision, until it has ended; raises ServiceError."""
        request = job_service_pb2.WatchJobRequest(job_id=job_id, revision=revision)
        with _typed_errors():
            for response in self._job_stub().WatchJob(request):
                yield response.job

    def _job_stub(self) -> Any:
        return self._stub(job_service_pb2_grpc.JobServiceStub)


def _score(proto: evaluation_pb2.Score) -> Score:
    return Score(num_questions=proto.num_questions, accuracy=proto.accuracy)


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        # What a synchronous stub raises is also the call, which knows its status.
        code = error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
        text = error.details() if isinstance(error, grpc.Call) else str(error)
        raise ServiceError(code, " ".join((text or "").split())) from error
