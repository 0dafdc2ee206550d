"""Verbalizers: what an intermediate layer would say (VLsI, Section 3.1)."""
