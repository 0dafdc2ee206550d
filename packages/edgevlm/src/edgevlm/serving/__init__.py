"""Answers requests with any image-text-to-text model."""
