"""Which names a tensor may have.

Names are keys and never become paths here. Those that a careless reader could take for a path out of its folder, or
that would break a one-line message, are refused where a pack is made and where it is read.
"""

_MAX_LETTERS = 512
# safetensors keeps it for itself.
_RESERVED = "__metadata__"


def name_fault(name: str) -> str | None:
    """What is wrong with a tensor's name; None when nothing is."""
    if not name or len(name) > _MAX_LETTERS:
        return f"expected a name of 1 to {_MAX_LETTERS} letters"
    if name == _RESERVED or not name.isprintable():
        return "expected a printable name that safetensors does not reserve"
    # "C:x" is a path out of every folder on Windows.
    if "\\" in name or name[1:2] == ":" or name.startswith("/") or ".." in name.split("/"):
        return "expected a name that is no path out of a folder"
    return None
