import pytest
import torch

from verbdistill import BatchError, VocabularyMismatchError, check_vocabularies
from verbdistill.models.vocabulary import shared_prefix


def test_heads_may_differ_in_padding_only():
    assert shared_prefix(152_064, 151_936, torch.tensor([151_935])) == 151_936
    assert shared_prefix(7, 9, torch.tensor([0])) == 7
    with pytest.raises(VocabularyMismatchError, match="below the shared vocabulary of 151936"):
        shared_prefix(152_064, 151_936, torch.tensor([3, 151_936]))
    with pytest.raises(BatchError, match="at least one response token"):
        shared_prefix(9, 9, torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"a": 0, "b": 1}, {"a": 0, "b": 2}, r"expected 'b' at id 1 .* got 2 \(1 tokens differ"),
        ({"a": 0, "b": 1}, {"a": 0}, "expected 'b' at id 1 .* got no such token"),
        ({"a": 0}, {"a": 0, "b": 1}, "that the teacher lacks, got 'b' at id 1"),
        ({"a": 0, "b": 1, "c": 2}, {"c": 0, "b": 1, "a": 2, "d": 3}, r"expected 'a' at id 0 .* got 2 \(3 tokens"),
    ],
)
def test_other_words_are_refused_by_name_and_the_opt_in_is_said(teacher, student, message):
    with pytest.raises(VocabularyMismatchError, match=message) as caught:
        check_vocabularies(teacher, student)
    assert "shared_words or sorted" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_words_in_another_order_of_the_mapping_pass():
    check_vocabularies({"a": 0, "b": 1}, {"b": 1, "a": 0})
    check_vocabularies({}, {})
