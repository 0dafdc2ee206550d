"""Parameters by what they belong to: the vision encoder, what connects it to the language model, or that model."""

from collections.abc import Iterable, Sequence

from stagetrain.errors import ScheduleError

VISION, CONNECTORS, LANGUAGE = "vision", "connectors", "language"

GROUPS = (VISION, CONNECTORS, LANGUAGE)
"""Names that stand for a group of parameters where prefixes of names are expected."""

# Parts of dotted names. Qwen's merger is inside the vision encoder and yet what connects; so these are asked first.
_CONNECTING = {
    "multi_modal_projector",
    "mm_projector",
    "connector",
    "image_newline",
    "merger",
    "deepstack_merger_list",
    "compressor",
    "reconstruction",
    "fusion",
    "visual_compressor",
}
_SEEING = {"vision_tower", "vision_model", "vision_encoder", "visual"}


def group_of(name: str) -> str:
    """Group of the parameter `name`; what neither sees nor connects is language."""
    parts = set(name.split("."))
    if parts & _CONNECTING:
        return CONNECTORS
    return VISION if parts & _SEEING else LANGUAGE


def selects(selectors: Sequence[str], name: str) -> bool:
    """Whether one of the selectors, a group or a prefix, covers the parameter `name`."""
    return any(group_of(name) == each if each in GROUPS else name.startswith(each) for each in selectors)


def check_selectors(selectors: Sequence[str], names: Iterable[str], where: str) -> None:
    """Refuses a selector that covers none of the parameters.

    Raises:
        ScheduleError: Names the selector.
    """
    known = list(names)
    for each in selectors:
        if not any(selects((each,), name) for name in known):
            raise ScheduleError(
                f"{where}: expected {', '.join(GROUPS)} or the beginning of a parameter's name, got {each!r}"
            )
