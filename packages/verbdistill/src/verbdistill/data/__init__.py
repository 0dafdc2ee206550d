"""Batches of dataset records for one model or a pair."""
