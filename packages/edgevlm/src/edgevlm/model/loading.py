"""Loads a `save_pretrained` directory whole, or says what is wrong with it.

transformers gives weights that a checkpoint lacks random values and goes on with a warning; half a
checkpoint would then answer nonsense.
"""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from edgevlm.errors import ModelDirectoryError

# What transformers, safetensors and the models' constructors raise over damaged files.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)


def load_strictly(auto_class: Any, directory: Path, **options: Any) -> Any:
    """`auto_class.from_pretrained(directory)` from local files, with every weight from the checkpoint.

    Args:
        auto_class: A model class, or an Auto class of models.
        directory: What `save_pretrained` wrote.
        **options: More arguments of `from_pretrained`.

    Raises:
        ModelDirectoryError: No such directory, files are missing or damaged, or the checkpoint lacks weights of
            the model or has them in another shape.
    """
    model, info = load_part(
        auto_class, directory, f"weights of {auto_class.__name__}", output_loading_info=True, **options
    )
    lacking = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if lacking:
        raise ModelDirectoryError(
            f"{directory}: expected all weights of {type(model).__name__}, "
            f"got none or another shape for {len(lacking)}: {', '.join(lacking[:3])}{', ...' * (len(lacking) > 3)}"
        )
    return model


def load_part(auto_class: Any, directory: Path, what: str, **options: Any) -> Any:
    """`auto_class.from_pretrained(directory)` from local files: a configuration, tokenizer or processor.

    Args:
        auto_class: Whose `from_pretrained` is called.
        directory: What `save_pretrained` wrote.
        what: For the message.
        **options: More arguments of `from_pretrained`.

    Raises:
        ModelDirectoryError: No such directory, or files are missing or damaged.
    """
    if not Path(directory).is_dir():
        raise ModelDirectoryError(f"{directory}: expected a directory with {what}, found none")
    try:
        return auto_class.from_pretrained(directory, local_files_only=True, **options)
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelDirectoryError(f"{directory}: expected {what}, got: {reason[:300]}") from error
