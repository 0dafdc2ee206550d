import pytest

from verbdistill import TargetError, default_targets


def test_the_papers_targets():
    # VLsI, Section 4.1(b): 7 of 28 layers, 20 of 80.
    assert default_targets(28) == (2, 6, 10, 14, 18, 22, 26)
    assert default_targets(80) == tuple(range(2, 79, 4))
    assert len(default_targets(80)) == 20


def test_shallow_models_take_every_layer():
    assert default_targets(1) == (1,)
    assert default_targets(4) == (1, 2, 3, 4)
    assert default_targets(12) == (2, 6, 10)
    with pytest.raises(TargetError, match="at least 1"):
        default_targets(0)
