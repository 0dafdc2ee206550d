"""Asks a server's models."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vlmpress.edgevlm.v1 import edgevlm_service_pb2, edgevlm_service_pb2_grpc
from vlmpress_services.clients.channel import LOAD_TIMEOUT_S, Client, typed_errors
from vlmpress_services.errors import InvalidRequestError, ServiceError


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


class EdgeVlmClient(Client):
    """Asks models of the store about images."""

    def load(self, ref: str) -> LoadedModelInfo:
        """Loads a model by digest or tag; raises ServiceError."""
        request = edgevlm_service_pb2.LoadModelRequest(model=ref)
        with typed_errors():
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
        with typed_errors():
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
