"""Loads packs in `from_pretrained`, through the hooks that transformers has for quantizers.

transformers hands a checkpoint's entries to conversions that make a model's tensors. A pack's entries are
a few rows of bytes for all tensors together, so one conversion takes them all and yields the whole model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.quantizers.base import HfQuantizer

from quantpack.container.decoding import default_threads
from quantpack.container.reading import PackReader
from quantpack.errors import CorruptPackError, ModelMismatchError, PackedModelError
from quantpack.hf.config import QuantpackConfig
from quantpack.hf.placing import Placement, place
from quantpack.hf.reading import NUM_THREADS, PackTensors
from quantpack.hf.replacing import pack_modules, unpack_modules

if TYPE_CHECKING:
    # Half a second to import, and packing has no use for it.
    from transformers import PreTrainedModel


class QuantpackHfQuantizer(HfQuantizer):
    """What transformers asks while it loads a pack; see `QuantpackConfig` for the choices.

    The pack's structure, every frame's checksum, and names and shapes against the model are checked, and a
    fault is a QuantpackError. The SHA-256 of the files is not: `quantpack.verify` and `quantpack.load` do that.
    """

    requires_calibration = False
    quantization_config: QuantpackConfig

    def __init__(self, quantization_config: QuantpackConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # Also when the caller alone says so: the config of one tower of a model has lost the entry.
        self.pre_quantized = True
        self._path: Path | None = None
        self._model: PreTrainedModel | None = None
        self._own_conversions: list[WeightTransform] = []
        self._filled = False

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of the model's floating tensors; float32 where neither the caller nor the config says."""
        # transformers then looks at the first entry of the file, and that is bytes.
        return dtype if dtype.is_floating_point else torch.float32

    def _process_model_before_weight_loading(
        self, model: "PreTrainedModel", checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if checkpoint_files is None or len(checkpoint_files) != 1:
            raise CorruptPackError(f"{type(model).__name__}: expected one file of weights, got {checkpoint_files}")
        self._path = Path(checkpoint_files[0])
        self._model = model

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: Any = None
    ) -> list[WeightTransform]:
        """One conversion that fills the model, in place of the model's own, which it applies by itself."""
        # Before transformers 5.23 the model was not handed over here.
        model, self._model = (self._model if model is None else model), None
        if self._path is None or model is None:
            return weight_conversions
        # Several tensors are decoded at a time; threads beyond the processors only take turns.
        reader = PackReader(self._path, num_threads=max(1, default_threads() // NUM_THREADS))
        placements = place(reader.index, model, weight_conversions, str(self._path))
        packed = set() if self.quantization_config.dequantize else pack_modules(model, placements, reader.index)
        self._own_conversions = weight_conversions
        # Which tensor of the model the conversion claims to make does not matter: it names what it yields.
        target = next(iter(model.state_dict()))
        fill = FillModel(self, PackTensors(reader, model, packed, str(self._path)), placements)
        return [WeightConverter(r"^quantpack\..+$", target, [fill], force_cpu=True)]

    def mark_filled(self) -> None:
        """Called when every tensor of the pack has reached the model."""
        self._filled = True

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self._filled:
            raise ModelMismatchError(f"{self._path}: expected transformers to take the pack's tensors, it did not")
        # For a later save: what the model's own checkpoints go through, and not what a pack does.
        model._weight_conversions = [found for found in self._own_conversions if found.was_used()]
        self._own_conversions = []
        return model

    def _dequantize(self, model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
        old_dtype = model.dtype
        unpack_modules(model, dtype)
        for parameter in model.parameters():
            # Not model.to(): it would round the float32 frequencies of rotary embeddings.
            if parameter.dtype == old_dtype and dtype is not None:
                parameter.data = parameter.data.to(dtype)
        return model

    def is_serializable(self) -> bool:
        """Never; only `save_pretrained` asks, and its own error would not say what to do instead.

        Raises:
            PackedModelError: Always.
        """
        raise PackedModelError(
            "save_pretrained: expected a model with ordinary weights, got a packed one: copy the pack's directory, "
            "or call model.dequantize() first"
        )

    @property
    def is_trainable(self) -> bool:
        """False: codes have no gradient; load with `QuantpackConfig(dequantize=True)` to train."""
        return False


class FillModel(ConversionOps):
    """The conversion from a pack's entries to a model's tensors."""

    def __init__(self, quantizer: QuantpackHfQuantizer, tensors: PackTensors, placements: list[Placement]) -> None:
        self._quantizer, self._tensors, self._placements = quantizer, tensors, placements

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, list[Tensor]]:
        """Itself, for transformers asks of the result no more than `keys` and `items`; nothing is read yet."""
        return cast("dict[str, list[Tensor]]", self)

    def keys(self) -> tuple[str, ...]:
        """Nothing: transformers completes partial names here, and the names are whole."""
        return ()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) for the whole model, each decoded shortly before it is taken.

        Raises:
            CorruptPackError: A tensor's bytes are not what the index says.
        """
        yield from self._tensors.stream(self._placements)
        self._quantizer.mark_filled()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FillModel":
        return self  # transformers copies conversions, and an open file cannot be
