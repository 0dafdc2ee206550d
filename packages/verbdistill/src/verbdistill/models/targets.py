"""Which decoder layers get a verbalizer; layers are 1-based as in hidden_states[i]."""

from collections.abc import Sequence

from verbdistill.errors import TargetError

_FIRST = 2
_EVERY = 4
_SHALLOW = 12


def default_targets(num_layers: int) -> tuple[int, ...]:
    """Every 4th layer from the 2nd (VLsI, Section 4.1: 2, 6, ..., 26 of 28 and 2, 6, ..., 78 of 80).

    Models of fewer than 12 layers take every layer: every 4th would leave them one or two targets.

    Raises:
        TargetError: `num_layers` is not positive.
    """
    if num_layers < 1:
        raise TargetError(f"num_layers: expected at least 1, got {num_layers}")
    if num_layers < _SHALLOW:
        return tuple(range(1, num_layers + 1))
    return every_fourth(num_layers)


def every_fourth(num_layers: int) -> tuple[int, ...]:
    """Every 4th layer from the 2nd, however few that are."""
    return tuple(range(_FIRST, num_layers + 1, _EVERY))


def check_targets(layers: Sequence[int], num_layers: int, owner: str) -> tuple[int, ...]:
    """The target layers of `owner` as a tuple.

    Raises:
        TargetError: They are none, not strictly ascending, or outside 1..num_layers.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1 or layers[-1] > num_layers:
        raise TargetError(f"{owner} targets: expected ascending layers within 1..{num_layers}, got {list(layers)}")
    return tuple(layers)


def check_pair(student: Sequence[int], teacher: Sequence[int]) -> None:
    """Raises TargetError unless the teacher has at least as many targets as the student."""
    if len(teacher) < len(student):
        raise TargetError(
            f"targets: expected at least as many teacher as student targets ({len(student)}), got {len(teacher)}"
        )
