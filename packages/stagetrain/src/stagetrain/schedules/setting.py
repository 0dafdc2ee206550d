"""How visual tokens are compressed inside the language model."""

from dataclasses import dataclass

from stagetrain.compressors import compressor_named
from stagetrain.errors import ScheduleError


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressionSetting:
    """Compressor, layer and stride.

    Attributes:
        layer: Decoder layer before which tokens are compressed, counted from 0; 0: before the whole decoder.
        stride: Visual tokens for one that is left.
        compressor: Name of a compressor.

    Raises:
        ScheduleError: `layer` is negative or `stride` below 1.
        UnknownCompressorError: No such compressor.
    """

    layer: int
    stride: int
    compressor: str = "average"

    def __post_init__(self) -> None:
        compressor_named(self.compressor)
        if self.layer < 0 or self.stride < 1:
            raise ScheduleError(
                f"compression: expected a layer of at least 0 and a stride of at least 1, got {self.layer} and"
                f" {self.stride}"
            )
