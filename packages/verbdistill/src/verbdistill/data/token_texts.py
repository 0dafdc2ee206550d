"""What text each token of a tokenizer stands for, whatever marks its vocabulary uses."""

import re
from collections.abc import Callable
from typing import Any

_META = "\u2581"  # what SentencePiece writes for a space
_CONTINUED = "##"  # what WordPiece writes where no space precedes
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_texts(tokenizer: Any) -> list[bytes | None]:
    """The UTF-8 bytes of every token by its id, the space before a word among them; None of special tokens and gaps.

    Knows byte-level vocabularies (a token may be a part of a character), SentencePiece's with its bytes,
    WordPiece, and vocabularies of whole words, each of which is taken to follow a space.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    texts: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    read = _reader([token for token, number in vocabulary.items() if number not in added and number not in special])
    for token, number in vocabulary.items():
        if number not in special:
            texts[number] = added[number].encode() if number in added else read(token)
    return texts


def _reader(tokens: list[str]) -> Callable[[str], bytes]:
    """By the mark that more tokens begin with: rare characters of another kind's vocabulary look like marks too."""
    alphabet = _byte_alphabet()
    space = next(character for character, byte in alphabet.items() if byte == 0x20)
    numbers = {mark: sum(token.startswith(mark) for token in tokens) for mark in (space, _META)}
    if numbers[_META] > numbers[space]:
        return _sentence_piece
    if numbers[space]:
        return lambda token: b"".join(
            bytes([alphabet[character]]) if character in alphabet else character.encode() for character in token
        )
    return _word_piece


def _sentence_piece(token: str) -> bytes:
    fallback = _FALLBACK.fullmatch(token)
    return bytes([int(fallback[1], 16)]) if fallback else token.replace(_META, " ").encode()


def _word_piece(token: str) -> bytes:
    return token.removeprefix(_CONTINUED).encode() if token.startswith(_CONTINUED) else f" {token}".encode()


def _byte_alphabet() -> dict[str, int]:
    """Byte of every character of a byte-level vocabulary.

    Visible Latin-1 characters stand for themselves, all other bytes in their order for U+0100 and on.
    """
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(themselves))
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
