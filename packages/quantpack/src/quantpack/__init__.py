"""INT4 quantization of vision-language models with lossless zstd packing (ECM)."""
