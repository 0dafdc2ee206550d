import pytest
import torch

from tokenreduce.reducing import VisualGrid


@pytest.fixture
def make_view():
    """A view of random features, with attention, from a seed."""

    def make(height, width, channels=6, seed=0, dtype=torch.float32, **fields):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(height, width, channels, generator=generator).to(dtype)
        attention = torch.rand(height, width, generator=generator)
        return VisualGrid(features=features, attention=attention, **fields)

    return make


@pytest.fixture
def reduce():
    """Calls a reducer with all views in one row."""

    def call(reducer, views, **options):
        return reducer.reduce(views, rows=[0] * len(views), **options)

    return call
