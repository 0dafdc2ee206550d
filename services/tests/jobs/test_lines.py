"""What a worker says, found again in its output; and what is kept of the rest."""

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.jobs.lines import MARK, MAX_LINE_BYTES, MAX_OPEN_LINE_BYTES, Listener, Speaker, details_of
from vlmpress_services.jobs.logs import LEFT_OUT, AttemptLog, attempt_texts


def heard(data: bytes, *sizes: int) -> tuple[list[dict[str, Any]], bytes]:
    """All of an output, taken in pieces of the given sizes, over and over."""
    listener, said, output = Listener(), [], b""
    while data:
        for size in sizes:
            messages, text = listener.feed(data[:size])
            data = data[size:]
            said += messages
            output += text
    return said, output + listener.rest()


def spoken(write: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        write(Speaker(file.fileno()), file.fileno())
        file.seek(0)
        return file.read()


def test_messages_and_output_come_apart_however_they_are_cut() -> None:
    progress = pb.TrainProgress(stage=1, step=7, num_steps=9, loss=float("nan"))

    def write(speaker: Speaker, handle: int) -> None:
        os.write(handle, b"loading\n\nmore\n 50%|##")
        speaker.report(0.25, 'a "line"\nof two', progress)
        os.write(handle, b"\xff 75%\n\n\n")
        speaker.report(0.5, "half", pb.DistillProgress(phase="sft", step=3))
        speaker.fail("no " * 2000 + '"' * 5000)
        os.write(handle, MARK + b"not JSON\n" + MARK + b"[1]\nthe end")

    output = spoken(write)
    whole = heard(output, len(output))
    said, text = whole
    assert said[0]["progress"] == 0.25
    assert said[0]["message"] == 'a "line" of two'
    assert str(details_of(said[0])) == str(progress)
    assert details_of(said[1]) == pb.DistillProgress(phase="sft", step=3)
    assert said[2]["failed"].startswith("no no no")
    assert details_of(said[2]) is None
    assert text == b"loading\n\nmore\n 50%|##\n\xff 75%\n\n\n" + MARK + b"not JSON\n" + MARK + b"[1]\nthe end"
    random.seed(0)
    for sizes in ((1,), (2, 3), (7,), tuple(random.choices(range(1, 40), k=50))):
        assert heard(output, *sizes) == whole


@pytest.mark.parametrize("text", ['"' * 9000, "\\" * 9000, "\u20ac" * 9000, "\x01" * 9000, "\ud800" * 9])
def test_no_message_is_longer_than_a_pipe_keeps_whole(text: str) -> None:
    progress = pb.TrainProgress(loss=1.2345678901234e-300, tokens_per_second=1e300)
    output = spoken(lambda speaker, _: speaker.report(1.0, text, progress))
    assert len(output) <= MAX_LINE_BYTES
    assert len(heard(output, 1000)[0]) == 1


def test_a_line_without_an_end_is_not_kept_in_memory() -> None:
    listener = Listener()
    text = b"x" * (2 * MAX_OPEN_LINE_BYTES)
    said, output = listener.feed(text)
    assert (said, output) == ([], text)
    assert listener.rest() == b""


@pytest.mark.parametrize("num_bytes", [0, 1, 9, 10, 11, 29, 30, 31, 40, 41, 95])
@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_log_keeps_its_beginning_and_its_end(tmp_path: Path, num_bytes: int, piece: int) -> None:
    text = bytes(33 + number % 90 for number in range(num_bytes))
    for _ in range(2):  # Written again, it is the same: a server may follow an attempt again.
        log = AttemptLog(tmp_path, 3, part_bytes=10)
        for start in range(0, num_bytes, piece):
            log.write(text[start : start + piece])
        log.close()
        kept = attempt_texts(tmp_path)[3]
        if num_bytes <= 30:
            assert kept == text
        else:
            tail = 10 + (num_bytes - 1) % 10 + 1
            assert kept == text[:10] + LEFT_OUT.format(num_bytes - 10 - tail).encode() + text[-tail:]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 30


def test_logs_of_attempts_stay_apart(tmp_path: Path) -> None:
    for number in (1, 2, 10, 11):
        log = AttemptLog(tmp_path, number)
        log.write(f"{number}".encode())
        log.close()
    AttemptLog(tmp_path, 1).close()
    assert attempt_texts(tmp_path) == {1: b"", 2: b"2", 10: b"10", 11: b"11"}
