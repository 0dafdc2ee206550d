import multiprocessing

import pytest
import torch

from verbdistill import ConfigError, VerbDistillError
from verbdistill.errors import TeacherCacheError
from verbdistill.losses.heads import Head
from verbdistill.losses.truncated import truncated_pairwise_kl, truncation_bias
from verbdistill.teachers.cached import CachedTeacher
from verbdistill.teachers.fingerprints import tensors_digest
from verbdistill.teachers.teacher import TeacherAnswer, TruncatedAnswer

HIDDEN, WORDS = 5, 23


class CountedTeacher:
    """Features are words of the batch under one matrix per target; counts what it is asked."""

    layers = (1, 3)
    fingerprint = "teacher"

    def __init__(self, seed=0, bias=False):
        generator = torch.Generator().manual_seed(seed)
        self.tables = torch.randn(3, WORDS, HIDDEN, generator=generator)
        self.head = Head(
            torch.randn(WORDS, HIDDEN, generator=generator), torch.randn(WORDS, generator=generator) if bias else None
        )
        self.asked = []

    def answer(self, index, batch):
        self.asked.append(index)
        keep = batch["labels"] != -100
        words = batch["input_ids"][keep]
        targets = tuple(table[words] for table in self.tables)
        return TeacherAnswer(targets=targets[:2], last=targets[2], labels=batch["labels"][keep])


def make_batch(index, length=6):
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(WORDS, (3, length), generator=generator)
    labels = ids.where(torch.rand(3, length, generator=generator) < 0.5, torch.tensor(-100))
    labels[:, -1] = ids[:, -1]
    return {"input_ids": ids, "labels": labels, "packed": torch.ones(3, 1, length, length, dtype=torch.bool)}


def opened(tmp_path, inner, **changes):
    return CachedTeacher(inner, tmp_path / "cache", **{"k": 4, **changes})


def assert_same(first, second):
    assert len(first.words) == len(second.words) == 3
    for one, other in zip(first.words + first.log_probabilities, second.words + second.log_probabilities, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert torch.equal(first.labels, second.labels)


@pytest.mark.parametrize("logits_bytes", [1, 1000, 2**20])
def test_kept_words_are_the_likeliest_of_every_target(tmp_path, logits_bytes):
    inner = CountedTeacher(bias=True)
    batch = make_batch(0)
    answer = opened(tmp_path, inner, logits_bytes=logits_bytes).answer(0, batch)
    whole = inner.answer(0, batch)
    assert isinstance(answer, TruncatedAnswer)
    assert torch.equal(answer.labels, whole.labels)
    for features, words, log_p in zip(
        (*whole.targets, whole.last), answer.words, answer.log_probabilities, strict=True
    ):
        assert words.shape == log_p.shape == (len(whole.labels), 4)
        assert (words.dtype, log_p.dtype) == (torch.int64, torch.float32)
        logits = (features @ inner.head.weight.T + inner.head.bias).double()
        for token in range(len(words)):
            p = logits[token].exp() / logits[token].exp().sum()
            likeliest = sorted(range(WORDS), key=lambda word, p=p: -p[word])[:4]
            assert words[token].tolist() == likeliest
            torch.testing.assert_close(log_p[token].double(), p[likeliest].log(), rtol=1e-5, atol=1e-6)


def test_what_was_asked_once_is_not_asked_again_and_is_the_same(tmp_path):
    inner = CountedTeacher()
    cached = opened(tmp_path, inner)
    first = [cached.answer(index, make_batch(index)) for index in range(3)]
    # Another process of the run: asked in another order and under other numbers.
    again = opened(tmp_path, inner)
    for index in (2, 0, 1):
        assert_same(first[index], again.answer(10 + index, dict(reversed(make_batch(index).items()))))
    assert inner.asked == [0, 1, 2]
    assert cached.layers == (1, 3)
    assert cached.head is inner.head
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 3
    assert not list((tmp_path / "cache").glob("**/.*"))


@pytest.mark.parametrize(
    "change",
    ["fingerprint", "k", "layers", "head", "words"],
)
def test_another_teacher_or_other_words_are_asked_anew(tmp_path, change):
    inner = CountedTeacher()
    opened(tmp_path, inner).answer(0, make_batch(0))
    values = {}
    other = CountedTeacher()
    if change == "layers":
        other.layers = (2, 3)
    elif change == "fingerprint":
        other.fingerprint = "another"
    elif change == "words":
        values["head"] = inner.head.first(WORDS - 3)
    elif change == "head":
        values["head"] = Head(inner.head.weight * 2)
    else:
        values["k"] = 5
    cached = opened(tmp_path, other, **values)
    cached.answer(0, make_batch(0))
    assert other.asked == [0]
    assert cached.fingerprint != opened(tmp_path, inner).fingerprint


@pytest.mark.parametrize("change", ["value", "name", "shape", "type"])
def test_another_batch_is_asked_anew(tmp_path, change):
    inner = CountedTeacher()
    cached = opened(tmp_path, inner)
    cached.answer(0, make_batch(0))
    batch = make_batch(0)
    packed = batch.pop("packed")
    if change == "value":
        packed[2, 0, 5, 5] = False
    batch["mask" if change == "name" else "packed"] = {
        "shape": packed.view(3, 6, 6),
        "type": packed.to(torch.uint8),
    }.get(change, packed)
    cached.answer(0, batch)
    assert inner.asked == [0, 0]


def test_words_are_counted_in_the_head_that_both_share(tmp_path):
    inner = CountedTeacher()
    ids = torch.tensor([1, 7, 8, 20])
    batch = make_batch(0)
    answer = opened(tmp_path, inner, k=2, head=inner.head.rows(ids)).answer(0, batch)
    last = inner.answer(0, batch).last
    expected = (last @ inner.head.weight[ids].T).log_softmax(dim=-1)
    torch.testing.assert_close(answer.log_probabilities[-1], expected.topk(2).values)
    assert torch.equal(answer.words[-1], expected.topk(2).indices)
    # Fewer words than k: all of them.
    assert opened(tmp_path, inner, k=9, head=inner.head.rows(ids)).answer(0, batch).words[0].shape[1] == 4


def test_losses_of_a_kept_answer_are_those_of_the_truncated_teacher(tmp_path):
    inner = CountedTeacher()
    batch = make_batch(0)
    whole, kept = inner.answer(0, batch), opened(tmp_path, inner).answer(0, batch)
    student = [torch.randn(len(whole.labels), HIDDEN, generator=torch.Generator().manual_seed(3))]
    teacher = [*whole.targets, whole.last]
    full, bias = truncation_bias(teacher, inner.head, student, inner.head, num_kept=4)
    pairs = truncated_pairwise_kl(kept.words, kept.log_probabilities, student, inner.head)
    torch.testing.assert_close(pairs.sums / pairs.num_tokens, full - bias)
    assert bool((bias > 0).all())


def damaged_file(tmp_path):
    inner = CountedTeacher()
    opened(tmp_path, inner).answer(0, make_batch(0))
    (file,) = (tmp_path / "cache").glob("*/*.safetensors")
    return file, lambda: opened(tmp_path, inner).answer(0, make_batch(0))


@pytest.mark.parametrize("place", [0, 4, 20, 200, -1, -90])
def test_a_changed_byte_is_found_and_the_file_named(tmp_path, place):
    file, ask = damaged_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[place] ^= 0x11
    file.write_bytes(content)
    with pytest.raises(TeacherCacheError) as caught:
        ask()
    assert str(file) in str(caught.value)
    assert isinstance(caught.value, VerbDistillError)
    assert isinstance(caught.value, ValueError)
    file.unlink()
    ask()


@pytest.mark.parametrize("length", [0, 7, 300, -1])
def test_a_file_cut_short_is_found(tmp_path, length):
    file, ask = damaged_file(tmp_path)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(TeacherCacheError, match="remove it"):
        ask()


def test_a_file_under_anothers_name_is_found(tmp_path):
    file, _ = damaged_file(tmp_path)
    inner = CountedTeacher()
    file.rename(file.with_name(f"{tensors_digest(make_batch(1))}.safetensors"))
    with pytest.raises(TeacherCacheError, match="digest"):
        opened(tmp_path, inner).answer(1, make_batch(1))


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path):
    file, ask = damaged_file(tmp_path)
    before = ask()
    # What a kill leaves: a part under the draft's name.
    file.with_name(f".{file.name}.0000.tmp").write_bytes(file.read_bytes()[:50])
    file.unlink()
    assert_same(before, ask())
    assert_same(before, ask())


def ask_all(folder, answered):
    torch.set_num_threads(1)
    cached = opened(folder, CountedTeacher())
    answered.put([cached.answer(index, make_batch(index)).log_probabilities[2].sum().item() for index in range(20)])


def test_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    answered = context.Queue()
    processes = [context.Process(target=ask_all, args=(tmp_path, answered)) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [answered.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert answers[0] == answers[1]
    assert len(list((tmp_path / "cache").glob("*/*.safetensors"))) == 20


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(TeacherCacheError, match="expected a place to keep an answer"):
        opened(tmp_path, CountedTeacher()).answer(0, make_batch(0))


def test_no_words_and_truncated_inner_answers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least 1 kept word, got 0"):
        opened(tmp_path, CountedTeacher(), k=0)
    inside = opened(tmp_path, CountedTeacher())
    with pytest.raises(TeacherCacheError, match="micro-batch 2: expected whole answers"):
        CachedTeacher(inside, tmp_path / "outside", 2).answer(2, make_batch(0))
