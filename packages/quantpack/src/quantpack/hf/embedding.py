"""An embedding whose table stays packed."""

import torch
from torch import Tensor

from quantpack.container.nibbles import codes_from_stored
from quantpack.grouping import Grid
from quantpack.hf.storage import PackedWeight
from quantpack.scheme import Scheme


class PackedEmbedding(PackedWeight):
    """Rows of a table [O, I] by their number; only the rows that are asked for are dequantized.

    Args:
        shape: O rows of I features.
        scheme: How the table was quantized.
        scale_dtype: Of the scales.
        padding_idx: As in nn.Embedding; nothing is trained here, so it only says which token pads.
        dtype: Of what comes out.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        scheme: Scheme,
        *,
        scale_dtype: torch.dtype,
        padding_idx: int | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(shape, scheme, scale_dtype=scale_dtype, dtype=dtype)
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx = padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """Row numbers [...] -> rows [..., I], as indexing the dequantized table gives them."""
        with self.codes.device:
            rows = self._rows(ids.reshape(-1))
        return rows.reshape(*ids.shape, self.embedding_dim)

    def _rows(self, ids: Tensor) -> Tensor:
        """Row numbers [N] -> [N, I]."""
        packed = self.packed()
        grid = Grid.of(self.shape, self.scheme, self.channel_blocks, "embedding")
        columns = torch.arange(self.embedding_dim)
        if grid.by_rows:
            groups = grid.first_group[ids, None] + columns // grid.run[ids, None]
        else:
            groups = grid.first_group + ids[:, None] // grid.run
        places = ids[:, None] * self.embedding_dim + columns
        pairs = self.codes[places >> 1]
        stored = torch.where(places % 2 == 1, pairs >> 4, pairs & 0x0F).to(torch.int8)
        zeros = None if packed.zeros is None else packed.zeros[groups]
        codes = codes_from_stored(stored, zeros, self.scheme.num_levels)
        steps = codes.float() if zeros is None else codes.float() - zeros
        return (steps * packed.scales.float()[groups]).to(self.like.dtype)
