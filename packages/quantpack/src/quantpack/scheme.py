"""How floating-point weights become low-bit codes.

A channel is a row of a weight [O, I] (axis "out", an output) or a column (axis "in", an input).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from quantpack.errors import SchemeError

MIN_BITS, MAX_BITS = 2, 4
# What a message's 32 bits hold.
MAX_SIZE = (1 << 32) - 1

Granularity = Literal["tensor", "channel", "group", "rows", "agq"]
Axis = Literal["out", "in"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some channels of a matrix, and what shares one scale among them (ECM section 3.2).

    Attributes:
        share: Part of all channels, over 0 and at most 1; the last block takes what the others leave.
        group_size: Over 0: each run of so many weights inside a channel has a scale.
        num_channels: Without group_size: so many whole channels share a scale; 0: all of the block do.
    """

    share: float = 1.0
    group_size: int = 0
    num_channels: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.share, bool) or not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise SchemeError(f"block: expected a share over 0 and at most 1, got {self.share!r}")
        object.__setattr__(self, "share", float(self.share))
        for field in ("group_size", "num_channels"):
            value = getattr(self, field)
            if type(value) is not int or not 0 <= value <= MAX_SIZE:
                raise SchemeError(f"block: {field}: expected an integer from 0 to {MAX_SIZE}, got {value!r:.80}")
        if self.group_size and self.num_channels:
            raise SchemeError(
                f"block: expected group_size or num_channels, got both: {self.group_size}, {self.num_channels}"
            )


def agq_blocks(group_size: int) -> tuple[Block, ...]:
    """AGQ when nobody has searched: 5% of the channels in groups, the others whole."""
    return Block(share=0.05, group_size=group_size), Block(share=0.95, num_channels=1)


DEFAULT_BLOCKS = agq_blocks(128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The number of codes, what shares a scale, and whether there is a zero point.

    Attributes:
        bits: Of one code, 2 to 4.
        granularity: What shares one scale: the whole matrix, a channel, `num_rows` channels, a run of
            `group_size` weights inside a channel, or, adaptively (AGQ), what each of `blocks` says.
        group_size: For "group"; 0 otherwise, whatever was given.
        num_rows: For "rows"; 0 otherwise, whatever was given.
        blocks: For "agq", most important channels first; empty otherwise, whatever was given.
        axis: What a channel is: "out" a row, "in" a column.
        symmetric: True: codes -2^(bits-1) .. 2^(bits-1)-1 around 0. False: codes from 0, with a zero point.
    """

    bits: int = 4
    granularity: Granularity = "group"
    group_size: int = 128
    num_rows: int = 2
    blocks: tuple[Block, ...] = DEFAULT_BLOCKS
    axis: Axis = "out"
    symmetric: bool = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not MIN_BITS <= self.bits <= MAX_BITS:
            raise SchemeError(f"bits: expected {MIN_BITS} to {MAX_BITS}, got {self.bits!r}")
        for field, choices in (("granularity", Granularity), ("axis", Axis)):
            value = getattr(self, field)
            if value not in get_args(choices):
                raise SchemeError(f"{field}: expected one of {', '.join(get_args(choices))}, got {value!r}")
        self._settle("group_size", self.granularity == "group")
        self._settle("num_rows", self.granularity == "rows")
        self._settle_blocks()
        if not isinstance(self.symmetric, bool):
            raise SchemeError(f"symmetric: expected true or false, got {self.symmetric!r}")

    @property
    def num_levels(self) -> int:
        """Different codes."""
        return 1 << self.bits

    @property
    def code_range(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        return (-self.num_levels // 2, self.num_levels // 2 - 1) if self.symmetric else (0, self.num_levels - 1)

    def layout(self) -> tuple[Block, ...]:
        """The scheme as blocks, whatever its granularity."""
        if self.granularity == "agq":
            return self.blocks
        num_channels = {"tensor": 0, "channel": 1, "rows": self.num_rows, "group": 0}[self.granularity]
        return (Block(group_size=self.group_size, num_channels=num_channels),)

    def as_fields(self) -> dict[str, Any]:
        """The scheme as JSON fields, the same in config.json and in a pack's index."""
        return {**asdict(self), "blocks": [asdict(block) for block in self.blocks]}

    def _settle(self, field: str, used: bool) -> None:
        value = getattr(self, field)
        if not used:
            # One value for "not used" keeps equal schemes equal.
            object.__setattr__(self, field, 0)
        elif type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise SchemeError(f"{field}: expected an integer from 1 to {MAX_SIZE}, got {value!r:.80}")

    def _settle_blocks(self) -> None:
        if self.granularity != "agq":
            object.__setattr__(self, "blocks", ())
            return
        blocks = tuple(self.blocks)
        # A block's number is stored as a byte.
        if not 1 <= len(blocks) <= 255 or not all(isinstance(block, Block) for block in blocks):
            raise SchemeError(f"blocks: expected 1 to 255 blocks, got {blocks!r:.80}")
        if abs(sum(block.share for block in blocks) - 1) > 1e-6:
            raise SchemeError(f"blocks: expected shares that add up to 1, got {[block.share for block in blocks]}")
        object.__setattr__(self, "blocks", blocks)


def scheme_from_fields(fields: object, where: str) -> Scheme:
    """Reads `as_fields` back; other keys are ignored.

    Raises:
        SchemeError: Names `where` the fields were found and what is wrong.
    """
    names = Scheme.__dataclass_fields__.keys()
    if not isinstance(fields, Mapping) or not names <= fields.keys():
        raise SchemeError(f"{where}: expected {', '.join(names)}, got {fields!r:.80}")
    try:
        blocks = tuple(Block(**block) for block in fields["blocks"])
        return Scheme(**{**{name: fields[name] for name in names}, "blocks": blocks})
    except (SchemeError, TypeError) as error:
        raise SchemeError(f"{where}: {error}") from error
