"""What ends a request before its time, and whose requests may not share a forward."""

import torch

from edgevlm.errors import ModelInputError
from edgevlm.serving.batching import Batcher
from edgevlm.serving.engine import Engine
from edgevlm.serving.events import Failed, Finish, FinishReason, GeneratedToken
from edgevlm.serving.requests import GREEDY, Sampling


def test_cancelled_requests_free_their_slots_at_the_next_token(asking, engine_of):
    engine = engine_of("llava", "llama")
    batcher = Batcher(engine, max_batch_size=2)
    first, second, third = (batcher.submit(engine.prepare_request(asking.request(number, num_tokens=20)))
                            for number in range(3))  # fmt: skip
    batcher.step()
    assert (batcher.num_running, batcher.num_waiting) == (2, 1)
    batcher.cancel(first)
    assert {handle for handle, _ in batcher.step()} == {second, third}
    batcher.cancel(first)
    batcher.cancel(third)
    batcher.cancel(second)
    assert not batcher.has_work
    assert batcher.step() == []


def test_a_deadline_ends_waiting_and_running_requests(asking, engine_of, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("edgevlm.serving.batching.time.monotonic", lambda: now[0])
    engine = engine_of("llava", "llama")
    batcher = Batcher(engine, max_batch_size=2)
    limits = (101.0, None, 101.0)
    handles = [
        batcher.submit(engine.prepare_request(asking.request(number, num_tokens=9, deadline_s=limit)))
        for number, limit in enumerate(limits)
    ]
    events = {handle: [] for handle in handles}
    for step in range(3):
        now[0] += 0.4
        for handle, event in batcher.step():
            events[handle].append(event)
        if step == 2:
            assert batcher.num_running == 1, "both slots were in use, and one is free now"
    ended, waited = events[handles[0]][-1], events[handles[2]]
    assert (ended.reason, ended.num_generated_tokens) == (FinishReason.DEADLINE, 2)
    assert ended.text == "".join(token.text for token in events[handles[0]][:-1])
    assert [(event.reason, event.num_prompt_tokens, event.text) for event in waited] == [(FinishReason.DEADLINE, 0, "")]
    rest = asking.drained(batcher, events)[handles[1]]
    assert rest == asking.alone(engine, asking.request(1, num_tokens=9))


def test_a_request_that_fails_fails_alone(asking, engine_of, monkeypatch):
    engine = engine_of("edge", "combined", "clip")
    asked = [asking.request(number, num_tokens=4) for number in (0, 1, 2)]
    prepared = [engine.prepare_request(one) for one in asked]
    # One placeholder more than its image has tokens.
    ids = prepared[1].inputs["input_ids"]
    prepared[1].inputs["input_ids"] = torch.cat((ids[:, :3], ids[:, 2:]), dim=1)
    batcher = Batcher(engine)
    handles = [batcher.submit(one) for one in prepared]
    events = asking.drained(batcher)
    assert [events[handle] for handle in (handles[0], handles[2])] == [
        asking.alone(engine, asked[0]),
        asking.alone(engine, asked[2]),
    ]
    (failed,) = events[handles[1]]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ModelInputError)


def test_a_broken_forward_ends_what_runs_and_no_more(asking, engine_of, monkeypatch):
    engine = engine_of("llava", "llama")
    batcher = Batcher(engine)
    first = [batcher.submit(engine.prepare_request(asking.request(number, num_tokens=9))) for number in range(3)]
    batcher.step()

    def broken(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("edgevlm.serving.batching.decode_rows", broken)
        events = dict(batcher.step())
    assert {handle: str(event.error) for handle, event in events.items()} == dict.fromkeys(first, "no memory")
    assert not batcher.has_work
    later = batcher.submit(engine.prepare_request(asking.request(1, num_tokens=3)))
    assert asking.drained(batcher)[later] == asking.alone(engine, asking.request(1, num_tokens=3))


def test_draws_do_not_depend_on_neighbours(asking, engine_of):
    engine = engine_of("llava", "llama")
    hot = Sampling(temperature=1.5, top_p=0.9, seed=5)
    asked = [asking.request(0, num_tokens=12, sampling=sampling) for sampling in (hot, GREEDY, hot, Sampling(
        temperature=1.5, top_p=0.9, seed=6))]  # fmt: skip
    batcher = Batcher(engine)
    handles = [batcher.submit(engine.prepare_request(one)) for one in asked]
    events = asking.drained(batcher)
    mine, greedy, same, other = (events[handle] for handle in handles)
    assert mine == same == asking.alone(engine, asked[0])
    assert greedy == asking.alone(engine, asked[1])
    assert len({finish[-1].text for finish in (mine, greedy, other)}) == 3


def test_an_unknown_model_serves_one_request_at_a_time(tiny, asking, monkeypatch):
    model, processor = tiny.llava()
    known = Engine(model, processor)
    expected = [asking.alone(known, asking.request(number, num_tokens=3)) for number in range(3)]
    monkeypatch.setattr("edgevlm.serving.abilities.KNOWN_TYPES", ())
    engine = Engine(model, processor)
    batcher = Batcher(engine)
    handles = [batcher.submit(engine.prepare_request(asking.request(number, num_tokens=3))) for number in range(3)]
    events = {}
    while batcher.has_work:
        for handle, event in batcher.step():
            events.setdefault(handle, []).append(event)
        assert batcher.num_running <= 1
    assert [events[handle] for handle in handles] == expected


def test_sliding_windows_decode_row_by_row(tiny, asking):
    window = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 0}
    engine = Engine(*tiny.llava(kind="qwen2", **window))
    engine.eos_token_ids = frozenset()
    asked = [asking.request(number, num_tokens=5) for number in range(4)]
    expected = [asking.alone(engine, one) for one in asked]
    batcher = Batcher(engine)
    handles = [batcher.submit(engine.prepare_request(one)) for one in asked]
    events = {}
    while batcher.has_work:
        for handle, event in batcher.step():
            events.setdefault(handle, []).append(event)
        assert batcher.cache_bytes == 0
    assert [events[handle] for handle in handles] == expected


def test_tokens_are_events_and_the_last_is_a_finish(asking, engine_of):
    engine = engine_of("llava", "llama")
    batcher = Batcher(engine)
    handle = batcher.submit(engine.prepare_request(asking.request(0, num_tokens=3)))
    *tokens, finish = asking.drained(batcher)[handle]
    assert all(isinstance(token, GeneratedToken) for token in tokens)
    assert isinstance(finish, Finish)
    assert finish.text == "".join(token.text for token in tokens)
