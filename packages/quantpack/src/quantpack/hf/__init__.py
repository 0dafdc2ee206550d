"""Packs as Hugging Face models: what `from_pretrained` needs to read one."""
