"""A reducer from its name and plain options: for commands, configuration files and benchmarks."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from tokenreduce.errors import PolicyError
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountsOf
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.reducing import Reducer

# What each name makes out of its options.
_CLASSES: dict[str, type[Any]] = {
    "attention": AttentionSelection,
    "dfmr": ReductionPolicy,
    "downsample": ImageDownsampling,
    "drop": RandomDrop,
    "fixed": FixedPooling,
    "merge": TokenMerging,
    "random": RandomPooling,
}
REDUCERS = tuple(_CLASSES)
_COUNTS_OF, _NAME = "counts_of", "name"
# Fields that are no options: a policy's own name and history, and a draw's place in a training run.
_NO_OPTIONS = ("calibration", "method", "step", "stream")


def build_reducer(name: str, options: Mapping[str, Any] | None = None) -> Reducer:
    """The reducer called `name`.

    Options are the fields of its class (of `ReductionPolicy` for "dfmr"); lists do for tuples. One more for those
    that keep a count of tokens ("attention", "drop", "merge"): `counts_of`, the options of another
    reducer and its `name`, which decides how many tokens each view gets (see `CountsOf`).

    Raises:
        PolicyError: The name or an option is unknown, one is missing, or a value is out of its range.
    """
    if not isinstance(name, str) or name not in _CLASSES:
        raise PolicyError(f"reducer: expected one of {', '.join(REDUCERS)}, got {name!r}")
    given = dict(options or {})
    counts_of = given.pop(_COUNTS_OF, None)
    if name == "dfmr":
        reducer: Any = DfmrReducer(_make(name, given))
    else:
        reducer = _make(name, given)
    return reducer if counts_of is None else CountsOf(decider=_decider(name, counts_of), rival=reducer)


def option_names(name: str) -> list[str]:
    """The options of a reducer but `counts_of`."""
    return [field.name for field in fields(_CLASSES[name]) if field.name not in _NO_OPTIONS]


def _make(name: str, options: dict[str, Any]) -> Any:
    known = option_names(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise PolicyError(f"options of {name}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    required = [
        field.name for field in fields(_CLASSES[name]) if field.default is MISSING and field.name not in options
    ]
    if required:
        raise PolicyError(f"options of {name}: expected {', '.join(required)}, got {sorted(options)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return _CLASSES[name](**values)
    except TypeError as error:
        # A text where the checks compare numbers.
        raise PolicyError(f"options of {name}: expected values of the fields' types, got {values}") from error


def _decider(name: str, options: Any) -> Reducer:
    if not isinstance(options, Mapping) or _NAME not in options:
        raise PolicyError(f"{_COUNTS_OF} of {name}: expected a reducer's name and options, got {options!r}")
    return build_reducer(options[_NAME], {key: value for key, value in options.items() if key != _NAME})
