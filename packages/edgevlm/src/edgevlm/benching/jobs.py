"""What one process of a bench does."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import BenchError
from edgevlm.profiling.layouts import ImageSize
from edgevlm.profiling.presets import preset_config
from edgevlm.profiling.saved import saved_config

DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchJob:
    """One model, one batch size, one round.

    Attributes:
        model: A preset, or a directory.
        is_directory: Which of both.
        random_weights: Only the directory's configuration is read; presets always have random weights.
        unpack: A pack's weights become ordinary ones when it is loaded, in its loader's own type.
        image: As "640x480".
        num_text_tokens: Of each row's prompt, its template included.
        num_new_tokens: Decoded in each row, the first one included.
        batch_size: Rows, of equal length, one image each.
        dtype: Of weights and activations.
        device: "cpu" or "cuda".
        num_threads: Of torch on the CPU.
        num_repeats: Timed requests after one that is not.
        with_shares: Measure each part's share of time too, in a request of its own.
    """

    model: str
    is_directory: bool = False
    random_weights: bool = False
    unpack: bool = False
    image: str = "640x480"
    num_text_tokens: int = 28
    num_new_tokens: int = 32
    batch_size: int = 1
    dtype: str = "bfloat16"
    device: str = "cpu"
    num_threads: int = 1
    num_repeats: int = 1
    with_shares: bool = False

    def __post_init__(self) -> None:
        ImageSize.parse(self.image)
        for name in ("num_text_tokens", "num_new_tokens", "batch_size", "num_threads", "num_repeats"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.dtype not in DTYPES:
            raise BenchError(f"dtype: expected one of {DTYPES}, got {self.dtype!r}")

    @property
    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def job_config(job: BenchJob) -> Any:
    """The configuration of the job's model.

    Raises:
        ArtifactError: The directory has no readable config.json.
        ModelDirectoryError: Its configuration cannot be used.
        UnknownPresetError: There is no such preset.
    """
    return saved_config(Path(job.model)) if job.is_directory else preset_config(job.model)
