"""What a generation request yields: tokens, then how it ended."""

from dataclasses import dataclass
from enum import Enum


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"


@dataclass(frozen=True, kw_only=True, slots=True)
class GeneratedToken:
    """One generated token, the end token included; `text` is what it adds to the answer, maybe nothing."""

    id: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """The end of an answer.

    `num_prompt_tokens` counts what the language model saw, so a visual token that a reducer took
    out is not in it; `num_generated_tokens` counts the end token; `text` is all token texts joined.
    A request whose deadline passed before the model saw it has no tokens at all.
    """

    reason: FinishReason
    num_prompt_tokens: int
    num_visual_tokens: int
    num_generated_tokens: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The end of a request in a batch that could not be served; the others go on."""

    error: Exception


GenerationEvent = GeneratedToken | Finish
BatchEvent = GenerationEvent | Failed
