"""Between this package's values and the messages of vlmpress.verbdistill.v1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verbdistill.errors import MatchingError
from verbdistill.seeing.speaking import LayerSpeech, Speeches, WordProbability
from vlmpress.verbdistill.v1 import verbdistill_pb2 as pb
from vlmpress.verbdistill.v1 import verbdistill_service_pb2 as service_pb

DEFAULT_SCALE = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSpec:
    """What a distilled student came from: target layers, optimizer steps and temperature scale."""

    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    num_verbalization_steps: int
    num_interaction_steps: int
    num_sft_steps: int
    temperature_scale: float


def distillation_to_proto(spec: DistillationSpec) -> pb.Distillation:
    """The specification of a distillation artifact."""
    return pb.Distillation(
        student_layers=spec.student_layers,
        teacher_layers=spec.teacher_layers,
        num_verbalization_steps=spec.num_verbalization_steps,
        num_interaction_steps=spec.num_interaction_steps,
        num_sft_steps=spec.num_sft_steps,
        temperature_scale=spec.temperature_scale,
    )


def distillation_from_proto(message: pb.Distillation) -> DistillationSpec:
    """Reads a distillation specification."""
    return DistillationSpec(
        student_layers=tuple(message.student_layers),
        teacher_layers=tuple(message.teacher_layers),
        num_verbalization_steps=message.num_verbalization_steps,
        num_interaction_steps=message.num_interaction_steps,
        num_sft_steps=message.num_sft_steps,
        temperature_scale=message.temperature_scale,
    )


def kld_from_proto(message: service_pb.MatchLayersRequest) -> Tensor:
    """The KL matrix of a request, float64 [t_s, t_l] in nats.

    Raises:
        MatchingError: Sizes do not hold 1 <= t_s <= t_l, or the values do not fill the matrix.
    """
    num_student, num_teacher = message.num_student_targets, message.num_teacher_targets
    if not 1 <= num_student <= num_teacher:
        raise MatchingError(
            "num_student_targets, num_teacher_targets: expected 1 <= student <= teacher, "
            f"got {num_student} and {num_teacher}"
        )
    if len(message.kld) != num_student * num_teacher:
        raise MatchingError(f"kld: expected {num_student * num_teacher} values, got {len(message.kld)}")
    return torch.tensor(list(message.kld), dtype=torch.float64).view(num_student, num_teacher)


def scale_from_proto(message: service_pb.MatchLayersRequest) -> float:
    """The temperature scale of a request; 0, what an unset field reads as, means 2."""
    return message.scale or DEFAULT_SCALE


def match_request_to_proto(
    kld: Tensor, *, scale: float = DEFAULT_SCALE, seed: int = 0
) -> service_pb.MatchLayersRequest:
    """A request for a draw; kld [t_s, t_l] in nats."""
    num_student, num_teacher = kld.shape
    return service_pb.MatchLayersRequest(
        num_student_targets=num_student,
        num_teacher_targets=num_teacher,
        kld=kld.detach().double().flatten().tolist(),
        scale=scale,
        seed=seed,
    )


def matches_to_proto(matches: Sequence[int]) -> service_pb.MatchLayersResponse:
    """The answer of a draw: 0-based teacher targets."""
    return service_pb.MatchLayersResponse(teacher_targets=matches)


def matches_from_proto(message: service_pb.MatchLayersResponse) -> list[int]:
    """Reads the answer of a draw."""
    return list(message.teacher_targets)


def speeches_to_proto(speeches: Speeches) -> service_pb.VerbalizeResponse:
    """What every layer and the model itself said."""
    return service_pb.VerbalizeResponse(
        layers=[_speech_to_proto(each) for each in speeches.layers], answer=_speech_to_proto(speeches.answer)
    )


def speeches_from_proto(message: service_pb.VerbalizeResponse) -> Speeches:
    """Reads what every layer and the model itself said."""
    return Speeches(tuple(map(_speech_from_proto, message.layers)), _speech_from_proto(message.answer))


def _speech_to_proto(speech: LayerSpeech) -> service_pb.LayerSpeech:
    words = [service_pb.WordProbability(word=each.word, probability=each.probability) for each in speech.first_words]
    return service_pb.LayerSpeech(layer=speech.layer or 0, text=speech.text, first_words=words)


def _speech_from_proto(message: service_pb.LayerSpeech) -> LayerSpeech:
    words = tuple(WordProbability(each.word, each.probability) for each in message.first_words)
    return LayerSpeech(message.layer or None, message.text, words)
