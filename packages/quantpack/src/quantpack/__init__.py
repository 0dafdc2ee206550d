"""INT4 quantization of vision-language models with lossless zstd packing (ECM)."""

from quantpack.affine import QuantizedTensor, dequantize, quantize_tensor
from quantpack.errors import (
    CalibrationError,
    CorruptPackError,
    ModelMismatchError,
    NotAPackError,
    OutputExistsError,
    PackedModelError,
    QuantpackError,
    SchemeError,
    SourceError,
    WeightError,
)
from quantpack.hf.registration import QuantpackConfig
from quantpack.inspecting import inspect
from quantpack.loading import load
from quantpack.packing import pack
from quantpack.report import PartReport
from quantpack.scheme import Axis, Block, Granularity, Scheme
from quantpack.totals import QuantizedModel
from quantpack.unpacking import read_tensors, unpack
from quantpack.verifying import verify

__all__ = [
    "Axis",
    "Block",
    "CalibrationError",
    "CorruptPackError",
    "Granularity",
    "ModelMismatchError",
    "NotAPackError",
    "OutputExistsError",
    "PackedModelError",
    "PartReport",
    "QuantizedModel",
    "QuantizedTensor",
    "QuantpackConfig",
    "QuantpackError",
    "Scheme",
    "SchemeError",
    "SourceError",
    "WeightError",
    "dequantize",
    "inspect",
    "load",
    "pack",
    "quantize_tensor",
    "read_tensors",
    "unpack",
    "verify",
]
