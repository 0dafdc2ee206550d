"""INT4 quantization of vision-language models with lossless zstd packing (ECM)."""

from quantpack.affine import QuantizedTensor, dequantize, quantize_tensor
from quantpack.errors import (
    CalibrationError,
    CorruptPackError,
    MissingExtraError,
    ModelMismatchError,
    NotAPackError,
    OutputExistsError,
    PackedModelError,
    QuantpackError,
    SchemeError,
    SearchError,
    SourceError,
    WeightError,
)
from quantpack.exporting import export_compressed_tensors
from quantpack.hf.registration import QuantpackConfig
from quantpack.inspecting import inspect
from quantpack.loading import load
from quantpack.packing import pack, pack_model
from quantpack.quantizing import Quantization, quantize
from quantpack.recipe import PartRecipe, Recipe
from quantpack.report import PartReport
from quantpack.scheme import Axis, Block, Granularity, Scheme
from quantpack.search.candidates import AgqSpace
from quantpack.search.ecm import PartSearch, search_ecm
from quantpack.search.ecm_result import EcmResult
from quantpack.search.options import EcmSearch
from quantpack.sweeping import Setting, Sweep, standard_settings, sweep
from quantpack.totals import QuantizedModel
from quantpack.unpacking import read_tensors, unpack
from quantpack.verifying import verify

__all__ = [
    "AgqSpace",
    "Axis",
    "Block",
    "CalibrationError",
    "CorruptPackError",
    "EcmResult",
    "EcmSearch",
    "Granularity",
    "MissingExtraError",
    "ModelMismatchError",
    "NotAPackError",
    "OutputExistsError",
    "PackedModelError",
    "PartRecipe",
    "PartReport",
    "PartSearch",
    "Quantization",
    "QuantizedModel",
    "QuantizedTensor",
    "QuantpackConfig",
    "QuantpackError",
    "Recipe",
    "Scheme",
    "SchemeError",
    "SearchError",
    "Setting",
    "SourceError",
    "Sweep",
    "WeightError",
    "dequantize",
    "export_compressed_tensors",
    "inspect",
    "load",
    "pack",
    "pack_model",
    "quantize",
    "quantize_tensor",
    "read_tensors",
    "search_ecm",
    "standard_settings",
    "sweep",
    "unpack",
    "verify",
]
