"""Fewer visual tokens where an image has little to say (DFMR of LLaVA-Zip)."""
