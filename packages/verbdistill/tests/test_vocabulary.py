import pytest

from verbdistill import VocabularyMismatchError, check_vocabularies


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
