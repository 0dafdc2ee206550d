import pytest

from tokenreduce import PolicyError, ReductionPolicy
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.catalogue import REDUCERS, build_reducer, option_names
from tokenreduce.reducers.counted import CountsOf
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.reducers.token_merging import TokenMerging

CASES = [
    ("attention", {"num_dominant": 12, "num_contextual": 4}, AttentionSelection(num_dominant=12, num_contextual=4)),
    ("dfmr", {"tau": 0.3, "factors": [1, 2]}, DfmrReducer(ReductionPolicy(tau=0.3, factors=(1, 2)))),
    ("downsample", {"factor": 2}, ImageDownsampling(factor=2)),
    ("drop", {"num_tokens": 16, "seed": 3}, RandomDrop(num_tokens=16, seed=3)),
    ("fixed", {"factor": 3}, FixedPooling(factor=3)),
    ("merge", {"share": 0.25}, TokenMerging(share=0.25)),
    ("random", {"factors": [1, 2, 4], "seed": 1}, RandomPooling(factors=(1, 2, 4), seed=1)),
]


@pytest.mark.parametrize(("name", "options", "expected"), CASES)
def test_every_name(name, options, expected):
    assert build_reducer(name, options) == expected


def test_names_and_options_are_listed():
    assert {name for name, _, _ in CASES} == set(REDUCERS)
    assert option_names("drop") == ["num_tokens", "share", "seed"]
    assert option_names("dfmr") == ["tau", "mode", "factors", "normalization"]
    assert build_reducer("random") == RandomPooling()


def test_counts_of_another_reducer():
    options = {"seed": 2, "counts_of": {"name": "dfmr", "tau": 0.3}}
    expected = CountsOf(decider=DfmrReducer(ReductionPolicy(tau=0.3)), rival=RandomDrop(seed=2))
    assert build_reducer("drop", options) == expected
    assert "counts_of" in options


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("dfrm", {}, "reducer: expected one of attention, dfmr, .*, got 'dfrm'"),
        (["drop"], {}, "reducer: expected one of"),
        ("fixed", {}, r"options of fixed: expected factor, got \[\]"),
        ("fixed", {"factor": 2, "seed": 1, "tau": 2}, "options of fixed: expected some of factor, got seed, tau"),
        ("drop", {"step": 2}, "options of drop: expected some of num_tokens, share, seed, got step"),
        ("drop", {"share": "half"}, "options of drop: expected values of the fields' types"),
        ("dfmr", {"tau": "low"}, "options of dfmr"),
        ("dfmr", {"tau": -1.0}, "tau: expected"),
        ("dfmr", {"tau": 1.0, "method": "dfmr"}, "options of dfmr: .* got method"),
        ("random", {"factors": 3}, "options of random"),
        ("downsample", {"factor": 0}, "factor: expected an integer >= 1, got 0"),
        ("merge", {"counts_of": {"tau": 0.3}}, "counts_of of merge: expected a reducer's name and options"),
        ("merge", {"counts_of": "dfmr"}, "counts_of of merge"),
        ("merge", {"counts_of": {"name": "nothing"}}, "reducer: expected one of"),
        ("fixed", {"factor": 2, "counts_of": {"name": "fixed", "factor": 2}}, "rival: expected a reducer that keeps"),
    ],
)
def test_bad_names_and_options(name, options, match):
    with pytest.raises(PolicyError, match=match):
        build_reducer(name, options)
