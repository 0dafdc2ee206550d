"""CRC-32C of chunks."""

import google_crc32c


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes, as an unsigned 32-bit number."""
    return int(google_crc32c.value(data))
