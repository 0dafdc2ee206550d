"""Between this package's values and the messages of vlmpress.verbdistill.v1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verbdistill.errors import MatchingError, VerbalizersError
from verbdistill.seeing.speaking import LayerSpeech, Speeches, WordProbability
from vlmpress.verbdistill.v1 import verbdistill_pb2 as pb
from vlmpress.verbdistill.v1 import verbdistill_service_pb2 as service_pb

DEFAULT_SCALE = 2.0

_KINDS = {
    "verb_ffn": pb.VERBALIZER_KIND_VERB_FFN,
    "mlp": pb.VERBALIZER_KIND_MLP,
    "ffn": pb.VERBALIZER_KIND_FFN,
    "decoder": pb.VERBALIZER_KIND_DECODER,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class VerbalizersSpec:
    """What verbalizers are and fit.

    Attributes:
        layers: Target layers, 1-based, ascending.
        hidden_size: Of the backbone.
        kind: Of the bodies, as `verbdistill.verbalizers.bodies.Kind` names them.
        depth: Blocks of a body.
        out_size: Width of what a body gives.
        is_bare: Whether neither norm nor head follow.
    """

    layers: tuple[int, ...]
    hidden_size: int
    kind: str
    depth: int
    out_size: int
    is_bare: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSpec:
    """What a distilled student came from: target layers, optimizer steps and temperature scale."""

    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    num_verbalization_steps: int
    num_interaction_steps: int
    num_sft_steps: int
    temperature_scale: float


def verbalizers_to_proto(spec: VerbalizersSpec) -> pb.Verbalizers:
    """The specification of a verbalizers artifact."""
    return pb.Verbalizers(
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        kind=_KINDS[spec.kind],
        depth=spec.depth,
        out_size=spec.out_size,
        is_bare=spec.is_bare,
    )


def verbalizers_from_proto(message: pb.Verbalizers) -> VerbalizersSpec:
    """Reads a verbalizers specification; what is not set is a verb-FFN of one block that keeps its width.

    Raises:
        VerbalizersError: Layers are not ascending from 1, the hidden size is 0, or the kind or depth is unknown.
    """
    layers = tuple(message.layers)
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1:
        raise VerbalizersError(f"verbalizers: layers: expected ascending layers from 1, got {list(layers)}")
    if message.hidden_size < 1:
        raise VerbalizersError("verbalizers: hidden_size: expected at least 1, got 0")
    kinds = {number: kind for kind, number in _KINDS.items()} | {pb.VERBALIZER_KIND_UNSPECIFIED: "verb_ffn"}
    if message.kind not in kinds or message.depth not in (0, 1, 2):
        raise VerbalizersError(
            f"verbalizers: expected a known kind and a depth of 1 or 2, got {message.kind} and {message.depth}"
        )
    return VerbalizersSpec(
        layers=layers,
        hidden_size=message.hidden_size,
        kind=kinds[message.kind],
        depth=message.depth or 1,
        out_size=message.out_size or message.hidden_size,
        is_bare=message.is_bare,
    )


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
