"""Spearman's rank correlation."""

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of the ranks; 0 where a side is constant."""
    x, y = (ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    spread = np.sqrt((x @ x) * (y @ y))
    return float((x @ y) / spread) if spread else 0.0
