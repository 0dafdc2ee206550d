"""What becomes of an image's visual tokens at one decoder layer; `catalogue.compressor_named` finds one by its name."""

from stagetrain.compressors.catalogue import COMPRESSORS, compressor_named
from stagetrain.compressors.compressor import DROPPED, Compressor, Units, num_left

__all__ = ["COMPRESSORS", "DROPPED", "Compressor", "Units", "compressor_named", "num_left"]
