"""Requests that share a batch get what each would have got alone."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgevlm.serving.batching import Batcher
from edgevlm.serving.decoding import decode_rows
from edgevlm.serving.prefilling import prefill_row
from edgevlm.serving.ragged_cache import RaggedCache

LLAMA, QWEN = (("llava", "llama"), {}), (("llava", "qwen2"), {})
NAFLEX = (("edge", "combined", "siglip2", "qwen2"), {"position_mode": "uncompressed"})
EDGES = [
    (("edge", fusion, *options), {"position_mode": mode})
    for fusion in ("none", "cross", "decoder", "combined")
    for options, mode in ((("clip",), "contiguous"), (("siglip2", "qwen2"), "uncompressed"))
]


def described(kind):
    return "-".join((*kind[0], *kind[1].values()))


@pytest.mark.parametrize("kind", [LLAMA, QWEN, *EDGES], ids=described)
def test_a_batch_gives_what_each_request_gets_alone(asking, engine_of, kind):
    engine = engine_of(*kind[0], **kind[1])
    asked = [asking.request(number) for number in range(7)]
    expected = [asking.alone(engine, one) for one in asked]
    batcher = Batcher(engine, max_batch_size=4)
    handles = [batcher.submit(engine.prepare_request(one)) for one in asked]
    most, events = 0, {}
    while batcher.has_work:
        for handle, event in batcher.step():
            events.setdefault(handle, []).append(event)
        most = max(most, batcher.num_running)
    assert most == 4
    assert [events[handle] for handle in handles] == expected
    assert batcher.cache_bytes == 0


@pytest.mark.parametrize("kind", [LLAMA, NAFLEX], ids=described)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), max_batch_size=st.integers(1, 5), max_prefill=st.sampled_from([1, 60, 2048]))
def test_requests_come_and_go_at_any_step(engine_of, known_answers, kind, seed, max_batch_size, max_prefill):
    engine, draw = engine_of(*kind[0], **kind[1]), random.Random(seed)
    batcher = Batcher(engine, max_batch_size, max_prefill)
    coming, numbers, events, cancelled = list(range(8)), {}, {}, set()
    while coming or batcher.has_work:
        for _ in range(draw.choice([0, 0, 1, 2, 4])):
            if coming:
                number = coming.pop()
                prepared, _ = known_answers(engine, number)
                numbers[batcher.submit(prepared)] = number
        if numbers and draw.random() < 0.1:
            gone = draw.choice(list(numbers))
            cancelled.add(gone)
            batcher.cancel(gone)
        for handle, event in batcher.step():
            assert handle not in cancelled or events[handle] == known_answers(engine, numbers[handle])[1]
            events.setdefault(handle, []).append(event)
        assert batcher.num_running <= max_batch_size
    for handle, number in numbers.items():
        expected = known_answers(engine, number)[1]
        seen = events.get(handle, [])
        assert seen == expected[: len(seen)] if handle in cancelled else seen == expected
    assert batcher.cache_bytes == 0


@pytest.fixture(scope="session")
def known_answers(asking):
    """Request and its events alone, by engine and number; made once."""
    known = {}

    def get(engine, number):
        if (id(engine), number) not in known:
            asked = asking.request(number)
            known[id(engine), number] = engine.prepare_request(asked), asking.alone(engine, asked)
        return known[id(engine), number]

    return get


@pytest.mark.parametrize("kind", [("llava", "llama"), ("edge", "combined", "clip")], ids="-".join)
def test_a_row_s_logits_do_not_depend_on_its_neighbours(asking, engine_of, kind):
    engine = engine_of(*kind)
    inputs = [engine.prepare_request(asking.request(number)).inputs for number in range(4)]
    caches = [prefill_row(engine.model, one)[1] for one in inputs]

    def logits(neighbours, poison=False):
        """Of three decode steps of request 0 behind other rows, maybe where one with values that are no numbers was."""
        cache, seen, mine = RaggedCache(), [], len(neighbours)
        with torch.inference_mode():
            for number in neighbours:
                cache.join(caches[number], [caches[number].get_seq_length()])
            if poison:
                cache.join(caches[2], [caches[2].get_seq_length()])
                for layer in cache.layers[:2]:
                    layer.parts[1].view(mine + 1, cache.lengths[mine])[mine] = torch.nan
                cache.leave(mine)
            cache.join(caches[0], [caches[0].get_seq_length()])
            if poison:
                cache.join(caches[3], [caches[3].get_seq_length()])
            for token in (7, 8, 9):
                tokens = [10 + number for number in range(len(cache.lengths))]
                tokens[mine] = token
                seen.append(decode_rows(engine.model, tokens, cache)[mine])
        return torch.stack(seen)

    expected = logits([])
    assert torch.isfinite(expected).all()
    for neighbours, poison in (([1], False), ([2, 3], False), ([1, 2, 3], False), ([2], True)):
        torch.testing.assert_close(logits(neighbours, poison), expected, rtol=0, atol=2e-6)


def test_what_a_batch_held_is_given_back(asking, engine_of):
    engine = engine_of("edge", "combined", "clip")
    batcher = Batcher(engine)
    handles = [batcher.submit(engine.prepare_request(asking.request(0, num_tokens=100))) for _ in range(16)]
    for _ in range(40):
        batcher.step()
    most = batcher.cache_bytes
    for handle in handles[2:]:
        batcher.cancel(handle)
    assert 0 < batcher.cache_bytes <= most / 4
    for _ in range(2):
        batcher.step()
    for handle in handles:
        batcher.cancel(handle)
    assert batcher.cache_bytes == 0
    assert not batcher.has_work
