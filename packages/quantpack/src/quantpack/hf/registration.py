"""Makes packs known to transformers."""

from transformers.quantizers.auto import register_quantization_config, register_quantizer

from quantpack.hf.config import QuantpackConfig
from quantpack.hf.quantizer import QuantpackHfQuantizer
from quantpack.source import METHOD

__all__ = ["QuantpackConfig"]

register_quantization_config(METHOD)(QuantpackConfig)
register_quantizer(METHOD)(QuantpackHfQuantizer)
