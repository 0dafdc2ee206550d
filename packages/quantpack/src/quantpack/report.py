"""The size figures of one part of a pack."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """Sizes of one part: "vision", "language", "other" or "total".

    Attributes:
        part: Its name.
        num_weights: Quantized weights.
        code_bytes_packed: Half the number of codes, rounded up tensor by tensor.
        code_bytes_compressed: The same codes in zstd frames, headers and checksums included.
        cr_codes: code_bytes_packed / code_bytes_compressed, the paper's compression ratio; 0 without codes.
        entropy_bits_per_code: Order-0 entropy of a tensor's codes as they are stored, in bits, averaged over tensors
            by their codes: what no coder that takes codes one by one goes below; 0 without codes.
        bits_per_weight: Every byte on disk in bits, over all weights of the part, quantized or kept.
        bytes_on_disk: Codes, scales, zeros and kept tensors; files and headers that serve all are in "other".
    """

    part: str
    num_weights: int
    code_bytes_packed: int
    code_bytes_compressed: int
    cr_codes: float
    entropy_bits_per_code: float
    bits_per_weight: float
    bytes_on_disk: int
