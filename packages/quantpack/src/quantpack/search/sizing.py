"""What a quantized tensor takes in a pack."""

from dataclasses import dataclass
from typing import Self

from quantpack.affine import QuantizedTensor
from quantpack.container.frames import compress_frames
from quantpack.container.nibbles import pack_nibbles, packed_bytes, stored_codes


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeSize:
    """Bytes of one tensor or of several.

    Attributes:
        num_weights: Codes.
        code_bytes_packed: At two a byte.
        code_bytes_compressed: The same in zstd frames.
        side_bytes: Scales, zeros and channel blocks, before compression.
    """

    num_weights: int = 0
    code_bytes_packed: int = 0
    code_bytes_compressed: int = 0
    side_bytes: int = 0

    @property
    def cr_codes(self) -> float:
        """The paper's compression ratio."""
        return self.code_bytes_packed / self.code_bytes_compressed if self.code_bytes_compressed else 0.0

    @property
    def bits_per_weight(self) -> float:
        """Compressed codes and what goes with them, over the codes."""
        return 8 * self.num_bytes / self.num_weights if self.num_weights else 0.0

    @property
    def num_bytes(self) -> int:
        """Compressed codes and what goes with them."""
        return self.code_bytes_compressed + self.side_bytes

    def __add__(self, other: Self) -> "CodeSize":
        return CodeSize(
            num_weights=self.num_weights + other.num_weights,
            code_bytes_packed=self.code_bytes_packed + other.code_bytes_packed,
            code_bytes_compressed=self.code_bytes_compressed + other.code_bytes_compressed,
            side_bytes=self.side_bytes + other.side_bytes,
        )


def size_of(quantized: QuantizedTensor) -> CodeSize:
    """What a pack of this tensor takes; compresses its codes to find out."""
    frames = compress_frames(pack_nibbles(stored_codes(quantized)).numpy().data)
    scales = quantized.scales.numel()
    zeros = 0 if quantized.zeros is None else packed_bytes(scales)
    # A channel's block takes a byte, and one bit or less once compressed.
    blocks = 0 if quantized.channel_blocks is None else -(-quantized.channel_blocks.numel() // 8)
    return CodeSize(
        num_weights=quantized.codes.numel(),
        code_bytes_packed=packed_bytes(quantized.codes.numel()),
        code_bytes_compressed=sum(len(frame) for frame in frames),
        side_bytes=scales * quantized.scales.element_size() + zeros + blocks,
    )
