"""Losses over response tokens; logits exist for a chunk of tokens at a time."""
