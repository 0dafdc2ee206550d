"""What verbalizers say of themselves in an artifact's manifest, and the message of it."""

from dataclasses import dataclass

from verbdistill.errors import VerbalizersError
from vlmpress.verbdistill.v1 import verbdistill_pb2 as pb

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
