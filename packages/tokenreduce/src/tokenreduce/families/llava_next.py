"""LLaVA-NeXT (AnyRes): the detail view goes to the language model as large as it is."""

from typing import Any

import torch

from tokenreduce.families.anyres import AnyResFamily


class LlavaNextFamily(AnyResFamily):
    """`LlavaNextForConditionalGeneration`."""

    model_class = "LlavaNextForConditionalGeneration"

    def fitted_shape(self, model: Any, arguments: dict[str, Any], height: int, width: int) -> tuple[int, int]:
        """See `AnyResFamily.fitted_shape`."""
        return height, width

    def fit(self, tokens_hwd: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """See `AnyResFamily.fit`."""
        return tokens_hwd
