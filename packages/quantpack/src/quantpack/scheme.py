"""How floating-point weights become 4-bit codes."""

from dataclasses import dataclass
from typing import Literal, get_args

from quantpack.errors import SchemeError

BITS = 4
NUM_LEVELS = 1 << BITS

Granularity = Literal["tensor", "channel", "group"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """INT4, round to nearest.

    Attributes:
        granularity: What shares one scale: the whole matrix, a row (output channel), or a run of
            `group_size` weights inside a row.
        group_size: Weights in one group; 0 unless granularity is "group", whatever was given.
        symmetric: True: codes -8..7 around 0. False: codes 0..15 with a zero point.
    """

    granularity: Granularity = "group"
    group_size: int = 128
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise SchemeError(
                f"granularity: expected one of {', '.join(get_args(Granularity))}, got {self.granularity!r}"
            )
        if self.granularity != "group":
            # One value for "not used" keeps equal schemes equal.
            object.__setattr__(self, "group_size", 0)
        elif isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 1:
            raise SchemeError(f"group_size: expected an integer of at least 1, got {self.group_size!r}")
        if not isinstance(self.symmetric, bool):
            raise SchemeError(f"symmetric: expected true or false, got {self.symmetric!r}")

    def as_fields(self) -> dict[str, str | int | bool]:
        """The scheme as JSON fields, the same in config.json and in a pack's index."""
        return {
            "bits": BITS,
            "granularity": self.granularity,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
        }


def scheme_from_fields(fields: object, where: str) -> Scheme:
    """Reads `as_fields` back; other keys are ignored.

    Raises:
        SchemeError: Names `where` the fields were found and what is wrong.
    """
    if not isinstance(fields, dict) or not {"bits", "granularity", "group_size", "symmetric"} <= fields.keys():
        raise SchemeError(f"{where}: expected bits, granularity, group_size and symmetric, got {fields!r:.80}")
    if fields["bits"] != BITS:
        raise SchemeError(f"{where}: expected {BITS} bits, got {fields['bits']!r}")
    try:
        return Scheme(granularity=fields["granularity"], group_size=fields["group_size"], symmetric=fields["symmetric"])
    except (SchemeError, TypeError) as error:
        raise SchemeError(f"{where}: {error}") from error
