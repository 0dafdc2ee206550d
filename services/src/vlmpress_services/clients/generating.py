"""Questions to a model as calls, and answers from the messages that a server streams."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1 import edgevlm_service_pb2_grpc
from vlmpress_services.clients.call import Call
from vlmpress_services.clients.channel import LOAD_TIMEOUT_S
from vlmpress_services.errors import InvalidRequestError, ServiceError

_STUB = edgevlm_service_pb2_grpc.EdgeVlmServiceStub


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModelInfo:
    """What the server loaded: digest of the artifact, parameters (tied ones once), Hugging Face model type."""

    digest: str
    num_params: int
    model_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """An earlier question, its answer, and how many of the call's images came with it."""

    question: str
    answer: str
    num_images: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn: logits over `temperature`, the fewest tokens of `top_p`; seed None: anew each time."""

    temperature: float
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One token, and what it adds to the answer; may be nothing."""

    id: int
    text: str


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


class AnswerReader:
    """Reads the messages of one answer; made when the call is."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._start_s = time.perf_counter()
        self._ttft_s = 0.0
        self._finish: pb.Finish | None = None

    def take(self, response: pb.GenerateResponse) -> GeneratedToken | None:
        """The token that a message brings, if it does."""
        self._ttft_s = self._ttft_s or time.perf_counter() - self._start_s
        if response.HasField("finish"):
            self._finish = response.finish
        return GeneratedToken(response.token.id, response.token.text) if response.HasField("token") else None

    def answer(self) -> Answer:
        """The whole answer, after the last message.

        Raises:
            ServiceError: It is not whole.
        """
        finish = self._finish
        if finish is None:
            raise ServiceError("DATA_LOSS", "Generate: the stream ended without a finish event")
        if finish.reason == pb.FINISH_REASON_DEADLINE:
            raise ServiceError(
                "DEADLINE_EXCEEDED", f"Generate: expected an answer in {self._timeout_s} s, got {finish.text[:80]!r}"
            )
        return Answer(
            text=finish.text,
            num_visual_tokens=finish.num_visual_tokens,
            num_prompt_tokens=finish.num_prompt_tokens,
            num_generated_tokens=finish.num_generated_tokens,
            ttft_s=self._ttft_s,
        )


def load_call(ref: str) -> Call[LoadedModelInfo]:
    """The call that loads a model by digest or tag."""
    request = pb.LoadModelRequest(model=ref)
    return Call(stub=_STUB, method="LoadModel", request=request, read=_loaded, timeout_s=LOAD_TIMEOUT_S)


def generate_call(
    ref: str,
    images: bytes | Sequence[bytes] | None,
    prompt: str,
    max_new_tokens: int,
    max_visual_tokens: int | None,
    history: Sequence[Turn],
    sampling: Sampling | None,
) -> Call[pb.GenerateResponse]:
    """The call that asks; `AnswerReader` reads its answer.

    Raises:
        InvalidRequestError: max_visual_tokens is below 1; on the wire 0 would mean no limit.
    """
    if max_visual_tokens is not None and max_visual_tokens < 1:
        raise InvalidRequestError(f"max_visual_tokens: expected at least 1 or None, got {max_visual_tokens}")
    request = pb.GenerateRequest(
        model=ref,
        images=[images] if isinstance(images, bytes) else images or (),
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        max_visual_tokens=max_visual_tokens or 0,
        history=[pb.Turn(question=turn.question, answer=turn.answer, num_images=turn.num_images) for turn in history],
        sampling=_sampling(sampling),
    )
    return Call(stub=_STUB, method="Generate", request=request, read=lambda response: response)


def _sampling(sampling: Sampling | None) -> pb.Sampling | None:
    if sampling is None:
        return None
    return pb.Sampling(temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed)


def _loaded(response: Any) -> LoadedModelInfo:
    return LoadedModelInfo(digest=response.digest, num_params=response.num_params, model_type=response.model_type)
