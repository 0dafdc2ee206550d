"""What is timed, and that a model is as before."""

import pytest
import torch

from tokenreduce import FeatureError, ReductionPolicy
from tokenreduce.bench_models import preset_work
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.timing import dfmr_cost, median_ms, prefill_times


def test_the_median_leaves_the_first_run_out(monkeypatch):
    clock = iter([0, 100, 200, 201, 300, 303, 400, 405])
    monkeypatch.setattr("tokenreduce.timing.time.perf_counter", lambda: next(clock))
    assert median_ms(lambda: None, 3) == 3000


def test_the_cost_of_dfmr_is_beside_the_encoders():
    cost = dfmr_cost(preset_work("tiny", 3), repeats=2)
    assert (cost.grid, cost.num_views) == ((8, 8, 64), 3)
    assert cost.share("literal") == cost.dfmr_ms["literal"] / cost.encoder_ms > 0


def test_prefill_of_every_reducer_in_one_run(llama, pixels, prompt):
    calls = [{"input_ids": prompt(5, seed)[None], "pixel_values": pixels[seed : seed + 1]} for seed in range(5)]
    before = set(llama.__dict__)
    reducers = {"full": None, "dfmr": DfmrReducer(ReductionPolicy(tau=0.5)), "by 2": FixedPooling(factor=2)}
    rows = prefill_times(llama, calls, reducers, repeats=1)
    assert [row.name for row in rows] == list(reducers)
    assert (rows[0].visual_tokens, rows[2].visual_tokens) == (64, 16)
    assert 9 <= rows[1].visual_tokens <= 64
    assert all(row.prefill_ms > 0 for row in rows)
    assert set(llama.__dict__) == before


def test_a_failure_leaves_nothing_attached(llama, pixels, prompt):
    calls = [{"input_ids": prompt(5)[None], "pixel_values": torch.full_like(pixels[:1], torch.nan)}]
    before = set(llama.__dict__)
    with pytest.raises(FeatureError):
        prefill_times(llama, calls, {"dfmr": DfmrReducer(ReductionPolicy(tau=0.5))}, repeats=1)
    assert set(llama.__dict__) == before
