import itertools

import pytest
import torch

from verbdistill import BatchError, Verbalizers, VocabularyMismatchError
from verbdistill.data.batches import PairBatch
from verbdistill.errors import TeacherCacheError
from verbdistill.losses.heads import Head
from verbdistill.models.states import response_states
from verbdistill.teachers.bias import bias_report
from verbdistill.teachers.cached import CachedTeacher
from verbdistill.teachers.local import LocalTeacher

TEACHER_LAYERS, STUDENT_LAYERS = (1, 2, 4), (1, 2)


@pytest.fixture
def pair(trained_teacher, llava):
    """A teacher, a narrower student of a longer padded vocabulary, and its verbalizers."""
    student = llava(2, seed=2, hidden_size=16, vocab_size=20)
    generator = torch.Generator().manual_seed(0)
    teacher = LocalTeacher(trained_teacher, Verbalizers(trained_teacher, TEACHER_LAYERS, generator=generator))
    return teacher, student, Verbalizers(student, STUDENT_LAYERS, generator=generator)


def slow_kl(theirs, ours, kept):
    """Token by token: with all words, and with the likeliest ones and one bucket; float64 logits [N, V]."""
    full = lower = 0.0
    for p, q in zip(theirs.softmax(-1), ours.softmax(-1), strict=True):
        full += float((p * (p / q).log()).sum())
        likeliest = sorted(range(len(p)), key=lambda word, p=p: -p[word])[:kept]
        a, b = p[likeliest], q[likeliest]
        lower += float((a * (a / b).log()).sum())
        if kept < len(p):
            lower += float((1 - a.sum()) * ((1 - a.sum()) / (1 - b.sum())).log())
    return full / len(theirs), (full - lower) / len(theirs)


def logits_of(head, features, words):
    return Head(head.weight[words].detach()).logits(features.detach().double())


@pytest.mark.parametrize("k", [1, 4, 12])
def test_full_and_bias_are_the_slow_ones(pair, batches, k):
    teacher, student, verbalizers = pair
    few = [batches(step, num_images=3) for step in range(2)]
    report = bias_report(teacher, student, verbalizers, few, k, logits_bytes=3000)
    assert (report.k, report.num_tokens) == (k, 12)
    answers = [teacher.answer(0, batch) for batch in few]
    states = [response_states(student, batch, STUDENT_LAYERS) for batch in few]
    theirs = [torch.cat(parts) for parts in zip(*((*answer.targets, answer.last) for answer in answers), strict=True)]
    ours = [torch.cat(parts) for parts in zip(*((*verbalizers.features(s), s.last) for s in states), strict=True)]
    words = torch.arange(12)
    theirs = [logits_of(teacher.head, part, words) for part in theirs]
    ours = [logits_of(verbalizers.head, part, words) for part in ours]
    for row in range(2):
        for column in range(3):
            full, bias = slow_kl(theirs[column], ours[row], k)
            assert float(report.full[row, column]) == pytest.approx(full, rel=1e-4)
            assert float(report.bias[row, column]) == pytest.approx(bias, rel=1e-3, abs=1e-5)
    full, bias = slow_kl(theirs[-1], ours[-1], k)
    assert report.last_full == pytest.approx(full, rel=1e-4)
    assert report.last_bias == pytest.approx(bias, rel=1e-3, abs=1e-5)


def test_bias_falls_with_the_words_kept_and_nothing_is_trained(pair, batches):
    teacher, student, verbalizers = pair
    reports = [bias_report(teacher, student, verbalizers, [batches(0)], k) for k in (1, 2, 4, 8, 12)]
    for fewer, more in itertools.pairwise(reports):
        assert torch.equal(fewer.full, more.full)
        assert bool((fewer.bias >= more.bias - 1e-6).all())
        assert fewer.last_bias >= more.last_bias - 1e-6
    assert bool((reports[0].bias > 1e-3).all())
    assert float(reports[-1].bias.abs().max()) < 1e-6
    assert all(parameter.grad is None for parameter in (*student.parameters(), *verbalizers.parameters()))
    assert reports[0].to_json()["bias_nats"] == reports[0].bias.tolist()


def test_words_that_both_share_and_tokens_of_the_same_text(pair, batches):
    teacher, student, verbalizers = pair
    batch = batches(0, num_images=4)
    rows = torch.tensor([0, 3, 6])
    words = torch.tensor([6, 7, 8, 9]), torch.tensor([9, 8, 7, 6])
    shared = PairBatch(teacher=batch, student=batch, teacher_rows=rows, student_rows=rows)
    report = bias_report(teacher, student, verbalizers, [shared], 2, words=words)
    assert report.num_tokens == 3
    theirs = logits_of(teacher.head, teacher.answer(0, batch).last[rows], words[0])
    ours = logits_of(verbalizers.head, response_states(student, batch, ()).last[rows], words[1])
    full, bias = slow_kl(theirs, ours, 2)
    assert report.last_full == pytest.approx(full, rel=1e-4)
    assert report.last_bias == pytest.approx(bias, rel=1e-3, abs=1e-5)


def test_what_cannot_be_compared_is_refused(pair, batches, tmp_path):
    teacher, student, verbalizers = pair
    with pytest.raises(BatchError, match="expected at least one, got none"):
        bias_report(teacher, student, verbalizers, [], 2)
    cached = CachedTeacher(teacher, tmp_path, 3)
    with pytest.raises(TeacherCacheError, match="whole answers to see a bias"):
        bias_report(cached, student, verbalizers, [batches(0)], 2)
    beyond = batches(0)
    beyond["labels"][0, -1] = 15
    with pytest.raises(VocabularyMismatchError, match="below the shared vocabulary of 12"):
        bias_report(teacher, student, verbalizers, [beyond], 2)
