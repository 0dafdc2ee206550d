import math

import pytest
import torch

from verbdistill import VocabularyMismatchError, ar_loss, check_vocabularies, kl_loss, kl_matrix
from verbdistill.losses.losses import shared_words


def slow_kl(teacher, student, num_words):
    """Token by token, word by word."""
    total = torch.zeros((), dtype=torch.float64)
    for p_logits, q_logits in zip(teacher[:, :num_words], student[:, :num_words], strict=True):
        p = p_logits.exp() / p_logits.exp().sum()
        q = q_logits.exp() / q_logits.exp().sum()
        for word in range(num_words):
            total = total + p[word] * (p[word].log() - q[word].log())
    return total / len(teacher)


def case(num_tokens=7, hidden=5, words=(11, 13), seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(words[0], hidden), draw(words[1], hidden), draw(num_tokens, hidden), draw(num_tokens, hidden)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
@pytest.mark.parametrize("num_words", [1, 11])
def test_kl_value_and_gradients(chunk_size, num_words):
    teacher_head, student_head, teacher, student = case()
    teacher.requires_grad_()
    student.requires_grad_()
    student_head.requires_grad_()
    expected = slow_kl((teacher @ teacher_head.T).detach(), student @ student_head.T, num_words)
    wanted = torch.autograd.grad(expected, (student, student_head))
    got = kl_loss(
        lambda x: x @ teacher_head.T,
        teacher,
        lambda x: x @ student_head.T,
        student,
        num_words=num_words,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(got, expected)
    got.backward()
    torch.testing.assert_close(student.grad, wanted[0])
    torch.testing.assert_close(student_head.grad, wanted[1])
    assert teacher.grad is None


@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_kl_matrix_is_every_pair(chunk_size):
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(9, 6, generator=generator, dtype=torch.float64) for _ in range(5)]
    states = [torch.randn(10, 6, generator=generator, dtype=torch.float64) for _ in range(5)]
    functions = [lambda x, head=head: x @ head.T for head in heads]
    matrix = kl_matrix(functions[:3], states[:3], functions[3:], states[3:], num_words=8, chunk_size=chunk_size)
    assert matrix.shape == (2, 3)
    assert not matrix.requires_grad
    for row in range(2):
        for column in range(3):
            teacher, student = (states[k] @ heads[k].T for k in (column, 3 + row))
            assert math.isclose(float(matrix[row, column]), float(slow_kl(teacher, student, 8)), rel_tol=1e-5)


def test_kl_of_equal_distributions_is_zero():
    head, _, states, _ = case(dtype=torch.float32)
    matrix = kl_matrix([lambda x: x @ head.T], [states], [lambda x: x @ head.T], [states], num_words=11)
    assert 0 <= float(matrix) < 1e-6


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_ar_value_and_gradients(chunk_size):
    head, _, states, _ = case()
    states.requires_grad_()
    labels = torch.tensor([0, 3, 10, 1, 1, 5, 7])
    logits = states @ head.T
    expected = -sum((logits[t].exp() / logits[t].exp().sum())[labels[t]].log() for t in range(7)) / 7
    (wanted,) = torch.autograd.grad(expected, states)
    got = ar_loss(lambda x: x @ head.T, states, labels, chunk_size=chunk_size)
    got.backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(states.grad, wanted)


def test_logits_of_a_chunk_only_exist_at_once():
    head, _, states, other = case(num_tokens=50)
    seen = []

    def watched(x):
        seen.append(len(x))
        return x @ head.T

    kl_loss(watched, states, watched, other, num_words=11, chunk_size=8)
    kl_matrix([watched] * 3, [states] * 3, [watched] * 2, [other] * 2, num_words=11, chunk_size=40)
    assert max(seen) == 8


def test_half_precision_logits_are_widened():
    head, _, states, other = case(dtype=torch.bfloat16)
    loss = kl_loss(lambda x: x @ head.T, states, lambda x: x @ head.T, other, num_words=11)
    assert loss.dtype == torch.float32


def test_vocabularies_may_differ_in_padding_only():
    assert shared_words(152_064, 151_936, torch.tensor([151_935])) == 151_936
    with pytest.raises(VocabularyMismatchError, match="below the shared vocabulary of 151936"):
        shared_words(152_064, 151_936, torch.tensor([3, 151_936]))
    check_vocabularies({"a": 0, "b": 1}, {"b": 1, "a": 0})
    with pytest.raises(VocabularyMismatchError, match=r"expected 'b' at id 1 .* got 2"):
        check_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 2})
    with pytest.raises(VocabularyMismatchError, match="no such token"):
        check_vocabularies({"a": 0, "b": 1}, {"a": 0})
    with pytest.raises(VocabularyMismatchError, match="got 'b' at id 1"):
        check_vocabularies({"a": 0}, {"a": 0, "b": 1})
