"""The file format of a pack: codes in zstd frames inside one safetensors file."""
