"""What quantization saves, from a model's shapes alone (ECM Figure 1 and Table 2)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from quantpack.errors import SourceError
from quantpack.selection import PARTS, Part, part_of
from vlmpress.artifact import ArtifactError, import_model_code

_KEPT_BYTES = 2.0
_INT4_BYTES = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PartShare:
    """Figure 1 for one part.

    Attributes:
        part: "vision", "language" or "other".
        num_weights: Every parameter, embeddings and norms included; tied ones once.
        share_16bit: Part of the model's bytes at two bytes a weight.
        share_int4_language: The same once the language model alone is at half a byte a weight.
    """

    part: Part
    num_weights: int
    share_16bit: float
    share_int4_language: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A row of Table 2: compression ratios of INT4 codes; None leaves the vision encoder at 16 bits."""

    name: str
    language_cr: float
    vision_cr: float | None


# Means over the four models of Table 2.
METHODS = (
    Method(name="AWQ+C", language_cr=1.08, vision_cr=None),
    Method(name="MBQ+C", language_cr=1.083, vision_cr=1.218),
    Method(name="ECM", language_cr=1.253, vision_cr=1.34),
)


def count_weights(config_path: Path) -> dict[Part, int]:
    """Parameters of each part of the model that a config.json describes; none is allocated.

    Args:
        config_path: A config.json, or the directory that holds one.

    Raises:
        SourceError: It describes no model that transformers knows.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

    path = Path(config_path)
    directory = path if path.is_dir() else path.parent
    try:
        import_model_code(directory)
        fields = json.loads((path / "config.json" if path.is_dir() else path).read_text(encoding="utf-8"))
        fields.pop("quantization_config", None)
        config = AutoConfig.for_model(**fields)
        known = (AutoModelForImageTextToText, AutoModelForCausalLM)
        auto = next((auto for auto in known if type(config) in auto._model_mapping), AutoModel)
        with torch.device("meta"):
            model = auto.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactError) as error:
        raise SourceError(f"{path}: expected a model's config.json, got {type(error).__name__}: {error}") from error
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
    return counts


def part_shares(counts: Mapping[Part, int]) -> list[PartShare]:
    """Figure 1: who takes the memory, before and after the language model is quantized."""
    before = {part: _KEPT_BYTES * count for part, count in counts.items()}
    after = {part: _part_bytes(part, count, 1.0, None) for part, count in counts.items()}
    return [
        PartShare(
            part=part,
            num_weights=count,
            share_16bit=before[part] / sum(before.values()),
            share_int4_language=after[part] / sum(after.values()),
        )
        for part, count in counts.items()
    ]


def saving(counts: Mapping[Part, int], language_cr: float, vision_cr: float | None) -> float:
    """Table 2's last column: bytes saved against a model whose language model alone is INT4, 0 to 1.

    As the paper counts: every weight of a quantized part at 4 bits, scales and zeros left out.

    Args:
        counts: Weights of each part.
        language_cr: INT4 over compressed bytes of the language model's codes.
        vision_cr: The same for the vision encoder; None: it stays at 16 bits.
    """
    before = sum(_part_bytes(part, count, 1.0, None) for part, count in counts.items())
    after = sum(_part_bytes(part, count, language_cr, vision_cr) for part, count in counts.items())
    return 1 - after / before


def _part_bytes(part: Part, count: int, language_cr: float, vision_cr: float | None) -> float:
    if part == "language":
        return count * _INT4_BYTES / language_cr
    if part == "vision" and vision_cr is not None:
        return count * _INT4_BYTES / vision_cr
    return count * _KEPT_BYTES
