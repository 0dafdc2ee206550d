"""The tensors of a model from a pack, decoded ahead by a few threads."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantpack.container.reading import PackReader
from quantpack.hf.placing import Placement, check_shape
from quantpack.hf.storage import packed_buffers

if TYPE_CHECKING:
    # Half a second to import, and packing has no use for it.
    from transformers import PreTrainedModel

# zstandard and torch release the interpreter's lock; more threads than this wait for memory.
NUM_THREADS = min(4, os.cpu_count() or 1)


class PackTensors:
    """Reads placements; what one decodes to is named as in the model.

    Args:
        reader: The pack.
        model: On the meta device; its tensors say the dtypes.
        packed: Targets whose weight stays packed: their tensors are the buffers of a PackedWeight.
        where: The pack, for errors.
    """

    def __init__(self, reader: PackReader, model: "PreTrainedModel", packed: Collection[str], where: str) -> None:
        self._reader, self._model, self._packed, self._where = reader, model, packed, where
        self._state: Mapping[str, Tensor] = model.state_dict()

    def stream(self, placements: list[Placement]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every placement, in the order they are ready; only a few are in memory at a time.

        Raises:
            CorruptPackError: A tensor's bytes are not what the index says.
        """
        remaining = iter(placements)
        pool = ThreadPoolExecutor(max_workers=NUM_THREADS, thread_name_prefix="quantpack")
        try:
            pending = {pool.submit(self.read, placement) for placement in islice(remaining, NUM_THREADS + 1)}
            while pending:
                # As they come: a large table must not hold up the layers behind it.
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(self.read, placement) for placement in islice(remaining, len(ready))}
                while ready:
                    tensors = ready.pop().result()
                    while tensors:
                        # Popped: what the model has taken is no longer held here.
                        yield tensors.popitem()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def read(self, placement: Placement) -> dict[str, Tensor]:
        """The tensors that one placement makes, by their names in the model."""
        if placement.conversion is not None:
            return self._converted(placement)
        (name, _), target = placement.sources[0], placement.target
        if target not in self._packed:
            return {target: self._reader.tensor(name, self._dtype(target))}
        packed = self._reader.packed(self._reader.index.aliases.get(name, name))
        path = target.removesuffix("weight")
        return {path + buffer: tensor for buffer, tensor in packed_buffers(packed).items()}

    def _converted(self, placement: Placement) -> dict[str, Tensor]:
        assert placement.conversion is not None
        dtype = self._dtype(placement.target)
        for name, pattern in placement.sources:
            # A tensor that is there already will do for one that is to come.
            tensor: Any = self._reader.tensor(name, dtype)
            placement.conversion.add_tensor(placement.target, name, pattern, tensor)
        made = placement.conversion.convert(placement.target, model=self._model, config=self._model.config)
        tensors = {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}
        for name, tensor in tensors.items():
            check_shape(name, tensor.shape, self._state[name], self._where)
        return tensors

    def _dtype(self, target: str) -> torch.dtype | None:
        """What a floating tensor becomes: the model's dtype, but float32 where its code asks for it."""
        dtype = self._state[target].dtype
        if not dtype.is_floating_point:
            return None
        kept = set(self._model._keep_in_fp32_modules_strict or ())
        if dtype == torch.float16:
            kept |= set(self._model._keep_in_fp32_modules or ())
        in_float32 = dtype.itemsize == 2 and any(re.search(pattern.replace("*", ".*"), target) for pattern in kept)
        return torch.float32 if in_float32 else dtype
