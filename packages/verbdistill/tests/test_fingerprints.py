import pytest
import torch
from torch import nn

from verbdistill.teachers.fingerprints import fingerprint_of, sample_of, tensors_digest


def linear(seed, *sizes):
    torch.manual_seed(seed)
    return nn.Linear(*sizes)


def test_fingerprints_tell_names_shapes_types_and_values():
    same = fingerprint_of(model=linear(0, 3, 4), verbalizers=linear(1, 3, 4))
    assert same == fingerprint_of(verbalizers=linear(1, 3, 4), model=linear(0, 3, 4))
    others = [
        fingerprint_of(model=linear(1, 3, 4), verbalizers=linear(0, 3, 4)),
        fingerprint_of(model=linear(0, 4, 3), verbalizers=linear(1, 3, 4)),
        fingerprint_of(model=linear(0, 3, 4)),
        fingerprint_of(model=linear(0, 3, 4).bfloat16(), verbalizers=linear(1, 3, 4).bfloat16()),
    ]
    assert len({same, *others}) == 5


@pytest.mark.parametrize("rows", [1, 10, 15, 19, 20, 1000])
def test_a_change_of_any_large_part_of_a_weight_shows(rows):
    large = nn.Linear(100, rows, bias=False)
    before = fingerprint_of(model=large)
    for third in range(3):
        with torch.no_grad():
            large.weight.flatten()[100 * rows * third // 3 : 100 * rows * (third + 1) // 3] += 1
        after = fingerprint_of(model=large)
        assert after != before
        before = after


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 2047, 2048, 5000])
def test_a_sample_is_spread_over_all_of_it(size):
    sample = sample_of(torch.arange(size))
    assert len(sample) <= 1024
    if size:
        step = max(1, -(-size // 1024))
        assert sample.tolist() == list(range(0, size, step))
        assert size - 1 - int(sample[-1]) < step


def test_digests_do_not_depend_on_order_or_layout():
    first, second = torch.randn(3, 4), torch.zeros((), dtype=torch.bool)
    assert tensors_digest({"a": first, "b": second}) == tensors_digest({"b": second, "a": first.T.contiguous().T})
    assert tensors_digest({"a": first}) != tensors_digest({"a": first.T})
    assert tensors_digest({"a": second}) != tensors_digest({"a": second[None]})
    assert len(tensors_digest({})) == 64
