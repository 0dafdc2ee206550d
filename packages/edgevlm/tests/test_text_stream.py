"""Pieces of text joined are the decoded whole, for tokenizers of every kind of decoder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgevlm.serving.text_stream import TextStream

WORDS = ["<pad>", "</s>", "a", "red", "b\u00e9", ",", "'s", "."]


def byte_level():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({"</s>": 0, **{letter: index + 1 for index, letter in enumerate(letters)}}, []))
    inner.decoder = decoders.ByteLevel()
    return inner


def metaspace():
    pieces = WORDS + ["\u2581" + word for word in WORDS[2:]] + ["\u2581", "\u2581\u2581"]
    inner = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<pad>"))
    inner.decoder = decoders.Metaspace()
    return inner


def sentence_pieces():
    pieces = WORDS + ["\u2581" + word for word in WORDS[2:]] + [f"<0x{byte:02X}>" for byte in range(256)]
    inner = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<pad>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


def word_pieces():
    pieces = WORDS + ["##" + word for word in WORDS[2:]]
    inner = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<pad>"))
    inner.decoder = decoders.WordPiece(cleanup=False)
    return inner


def plain():
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.decoder = decoders.Fuse()
    return inner


MAKERS = {
    "bytes": byte_level,
    "metaspace": metaspace,
    "sentence": sentence_pieces,
    "words": word_pieces,
    "plain": plain,
}
TOKENIZERS = {
    name: PreTrainedTokenizerFast(tokenizer_object=make(), eos_token="</s>", clean_up_tokenization_spaces=False)
    for name, make in MAKERS.items()
}


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
def test_pieces_joined_are_the_whole(name, data):
    tokenizer = TOKENIZERS[name]
    token = st.integers(0, len(tokenizer) - 1).map(lambda number: [number])
    if name == "sentence":
        # Bytes that are no text together turn all of their run to U+FFFD, whatever was said of it before.
        words = st.integers(0, len(tokenizer) - 257).map(lambda number: [number])
        token = words | st.characters(codec="utf-8").map(lambda letter: tokenizer.convert_tokens_to_ids(
            [f"<0x{byte:02X}>" for byte in letter.encode()]))  # fmt: skip
    ids = [number for numbers in data.draw(st.lists(token, min_size=1, max_size=60)) for number in numbers]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token, last=index == len(ids) - 1) for index, token in enumerate(ids)]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(pieces) == stream.text == whole


@given(text=st.text(max_size=40))
def test_no_piece_ends_inside_a_character(text):
    tokenizer = TOKENIZERS["bytes"]
    ids = [1 + sorted(pre_tokenizers.ByteLevel.alphabet()).index(letter) for letter in as_letters(text)]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token, last=False) for token in ids]
    assert "".join(pieces) == text.rstrip("\ufffd")
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def as_letters(text):
    """The byte-level alphabet's letters of a text's bytes."""
    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text))


def test_bytes_that_are_no_text_do_not_stop_the_stream():
    tokenizer = TOKENIZERS["sentence"]
    stream = TextStream(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["<0x00>", "<0x80>", "red", "<0xC3>", "a", "red"] + ["red"] * 30)
    pieces = [stream.push(number, last=False) for number in ids]
    assert "".join(pieces).endswith("a" + "red" * 31)


def test_partial_characters_of_an_unknown_tokenizer():
    class Bytes:
        def decode(self, ids, **_):
            return bytes(ids).decode(errors="replace")

    stream, whole = TextStream(Bytes()), "a\u00e9\u20acz".encode()
    pieces = [stream.push(byte, last=index == len(whole) - 1) for index, byte in enumerate(whole)]
    assert pieces == ["a", "", "\u00e9", "", "", "\u20ac", "z"]
    cut = TextStream(Bytes())
    assert [cut.push(0xC3, last=True)] == ["\ufffd"] == [cut.text]
