"""A 2B-class edge VLM with token compressor and fusion module (AuroraEdge-V)."""
