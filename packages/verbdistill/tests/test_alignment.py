import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece
from tokenizers.trainers import BpeTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from verbdistill import BatchError, VocabularyMismatchError
from verbdistill.data.alignment import AlignedPairBatches, aligned, shared_words
from verbdistill.data.token_texts import token_texts

CORPUS = ["the red square is left of the blue circle", "the small green circle is right of the red square"]
STRANGE = "caf\u00e9 \u4e09\u89d2\u5f62 \u2014 10% \u0120 a_b"


def byte_level(*, words=330, add_prefix_space=False):
    """As Qwen's: a token may be a part of a character."""
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=words,
        special_tokens=["<|im_end|>", "<image>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")


def sentence_piece():
    """As Llama's: every space is written, and bytes stand for unknown characters."""
    core = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<image>", "</s>"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    state = core.get_vocab()
    merges = [tuple(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    state |= {f"<0x{byte:02X}>": len(state) + byte for byte in range(256)}
    core.model = BPE(vocab=state, merges=merges, byte_fallback=True, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


def whole_words():
    words = ["<unk>", "<image>", "</s>", *sorted({word for line in CORPUS for word in line.split()})]
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )


def word_piece():
    core = Tokenizer(WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "<image>", "[SEP]"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="[SEP]", unk_token="[UNK]")


KINDS = {"bytes": byte_level, "pieces": sentence_piece, "words": whole_words, "parts": word_piece}


@pytest.fixture(scope="module")
def tokenizers():
    return {name: make() for name, make in KINDS.items()}


def split(tokenizer, text):
    """Ids of an answer with its end, and their texts."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    texts = token_texts(tokenizer)
    return ids, [texts[number] for number in ids]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", CORPUS)
def test_tokens_stand_for_the_text_they_were_cut_from(tokenizers, kind, text):
    _, texts = split(tokenizers[kind], text)
    assert texts[-1] is None
    assert b"".join(texts[:-1]).decode().strip() == text


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_parts_of_characters_stand_for_bytes(tokenizers, kind):
    _, texts = split(tokenizers[kind], STRANGE)
    assert b"".join(texts[:-1]).decode().strip() == STRANGE
    assert any(len(text) == 1 and text[0] >= 0x80 for text in texts[:-1])


def test_added_words_stand_for_themselves_and_special_ones_for_nothing():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool \u00e9>", special=False)])
    texts = token_texts(tokenizer)
    assert texts[tokenizer.convert_tokens_to_ids("<tool \u00e9>")] == "<tool \u00e9>".encode()
    assert texts[tokenizer.convert_tokens_to_ids("<image>")] is None


def test_rare_characters_are_not_taken_for_marks():
    tokenizer = sentence_piece()
    vocabulary = tokenizer.get_vocab() | {"\u0120": 1000}
    core = Tokenizer(BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    texts = token_texts(PreTrainedTokenizerFast(tokenizer_object=core))
    assert texts[1000] == "\u0120".encode()
    assert texts[vocabulary["\u2581"]] == b" "


def slow_alignment(teacher, student):
    """Every pair of tokens whose prefixes read alike, and of several with the same prefix one."""

    def read(tokens):
        return b"".join(token or b"" for token in tokens).replace(b" ", b"")

    pairs = {}
    for i in range(len(teacher)):
        for j in range(len(student)):
            if read(teacher[:i]) == read(student[:j]):
                pairs.setdefault(read(teacher[:i]), []).append((i, j))
    return [next((pair for pair in same if teacher[pair[0]] == student[pair[1]]), same[0]) for same in pairs.values()]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("text", [*CORPUS, "the  red", "", " left"])
def test_alignment_of_real_tokenizers_is_the_slow_one(tokenizers, first, second, text):
    theirs, ours = (split(tokenizers[kind], text)[1] for kind in (first, second))
    pairs = aligned(theirs, ours)
    assert pairs == slow_alignment(theirs, ours)
    assert pairs[0] == (0, 0)
    # The end of the sequence is compared with the end of the sequence.
    assert pairs[-1] == (len(theirs) - 1, len(ours) - 1)
    if first == second:
        assert all(i == j for i, j in pairs)


@given(st.text("ab ", max_size=12), st.integers(0, 2**30))
@settings(deadline=None, max_examples=150)
def test_alignment_of_any_cuts_is_the_slow_one(text, seed):
    draw = random.Random(seed)

    def cut():
        tokens, start = [], 0
        while start < len(text):
            end = draw.randint(start + 1, len(text))
            tokens.append(text[start:end].encode())
            start = end
        return [*tokens, None]

    theirs, ours = cut(), cut()
    pairs = aligned(theirs, ours)
    assert pairs == slow_alignment(theirs, ours)
    assert pairs == sorted(pairs)
    assert all(len({pair[side] for pair in pairs}) == len(pairs) for side in (0, 1))


def test_the_end_is_found_between_the_marks_around_it():
    # A space before the mark, a line break after it.
    assert aligned([b"red", b" ", None], [b"r", b"ed", None, b"\n"]) == [(0, 0), (2, 2)]


def test_answers_that_read_differently_are_aligned_up_to_there():
    theirs = [b"The", b" red", b" one", None]
    assert aligned(theirs, [b"the", b" red", b" one", None]) == [(0, 0)]
    # An unknown word has no text.
    assert aligned(theirs, [b" The", None, b" one", None]) == [(0, 0), (1, 1)]


def test_shared_words_stand_for_the_same_text(tokenizers):
    for first in KINDS:
        for second in KINDS:
            teacher, student = tokenizers[first], tokenizers[second]
            words = shared_words(teacher, student)
            theirs, ours = token_texts(teacher), token_texts(student)
            assert words[0].tolist() == sorted(set(words[0].tolist()))
            assert len(set(words[1].tolist())) == len(words[1])
            names = [teacher.eos_token, "<image>"]
            for one, other in zip(*(part.tolist() for part in words), strict=True):
                assert theirs[one] == ours[other]
                if theirs[one] is None and first != second:
                    assert teacher.convert_ids_to_tokens(one) in [*names, "<unk>"]
            assert (teacher.eos_token_id, student.eos_token_id) in list(
                zip(*(part.tolist() for part in words), strict=True)
            )
    ids, _ = shared_words(tokenizers["bytes"], tokenizers["words"])
    assert tokenizers["bytes"].convert_tokens_to_ids("\u0120red") in ids.tolist()


def test_every_text_of_both_vocabularies_is_shared(tokenizers):
    teacher, student = tokenizers["bytes"], tokenizers["pieces"]
    both = {text for text in token_texts(teacher) if text is not None} & set(token_texts(student))
    # The image mark and the end of the sequence beside them.
    assert len(shared_words(teacher, student)[0]) == len(both) + 2


def test_no_shared_word_is_refused():
    def single(word):
        core = Tokenizer(WordLevel({word: 0}))
        return PreTrainedTokenizerFast(tokenizer_object=core)

    with pytest.raises(VocabularyMismatchError, match="expected words that teacher and student share"):
        shared_words(single("a"), single("b"))


def batch_of(rows):
    """Rows of (ids, whether each is a response token)."""
    length = max(len(row) for row in rows)
    labels = torch.full((len(rows), length), -100)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor([number for number, _ in row])
        labels[place, : len(row)] = torch.tensor([number if kept else -100 for number, kept in row])
    return {"input_ids": ids, "labels": labels}


def conversation(tokenizer, answers, prompt):
    row = []
    for answer in answers:
        row += [(0, False)] * prompt + [(number, True) for number in split(tokenizer, answer)[0]]
    return row


ROWS = [["the red square", "left"], ["circle"], ["the small green circle is right of the red square"]]


def test_pairs_of_a_batch_point_at_its_response_tokens(tokenizers):
    teacher, student = tokenizers["bytes"], tokenizers["words"]
    sources = [
        lambda _index, tokenizer=tokenizer, prompt=prompt: batch_of(
            [conversation(tokenizer, answers, prompt) for answers in ROWS]
        )
        for tokenizer, prompt in ((teacher, 7), (student, 3))
    ]
    pair = AlignedPairBatches(*sources, teacher, student)(0)
    assert pair.teacher_rows.dtype == pair.student_rows.dtype == torch.int64
    labels = [batch["labels"][:, 1:][batch["labels"][:, 1:] != -100] for batch in (pair.teacher, pair.student)]
    texts = [token_texts(teacher), token_texts(student)]
    # Every word of the student's begins somewhere in the teacher's, so all of its tokens have a pair.
    assert pair.student_rows.tolist() == list(range(len(labels[1])))
    for i, j in zip(pair.teacher_rows.tolist(), pair.student_rows.tolist(), strict=True):
        theirs, ours = texts[0][labels[0][i]], texts[1][labels[1][j]]
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            assert ours.strip().startswith(theirs.strip())


def test_other_rows_or_answers_are_refused_by_name(tokenizers):
    words = tokenizers["words"]

    def source(rows):
        return lambda _index: batch_of([conversation(words, answers, 2) for answers in rows])

    with pytest.raises(BatchError, match="micro-batch 4: expected as many student rows as the teacher's 3, got 2"):
        AlignedPairBatches(source(ROWS), source(ROWS[:2]), words, words)(4)
    with pytest.raises(BatchError, match=r"micro-batch 4, row 0: .* teacher's \(2\), got 1"):
        AlignedPairBatches(source(ROWS), source([["left"], *ROWS[1:]]), words, words)(4)


def test_labels_of_another_tokenizer_are_refused(tokenizers):
    words = tokenizers["words"]
    batch = batch_of([[(0, False), (len(words), True)]])
    with pytest.raises(BatchError, match=f"ids of the tokenizer's {len(words)} words, got {len(words)}"):
        AlignedPairBatches(lambda _index: batch, lambda _index: batch, words, words)(0)
