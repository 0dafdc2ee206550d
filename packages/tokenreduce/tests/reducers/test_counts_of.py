import pytest
import torch

from tokenreduce import BudgetError, PolicyError, ReductionPolicy
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountsOf
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.reducing import VisualGrid

DFMR = DfmrReducer(ReductionPolicy(tau=0.5))
RIVALS = [RandomDrop(seed=1), AttentionSelection(), TokenMerging()]


@pytest.fixture
def graded(make_view):
    """Views from flat to noisy."""
    views = []
    for index, share in enumerate((0.0, 0.3, 0.6, 1.0)):
        view = make_view(6, 8, seed=index)
        smooth = torch.linspace(-2, 2, 6)[:, None, None].expand_as(view.features)
        views.append(VisualGrid(features=smooth * (1 - share) + view.features * share, attention=view.attention))
    return views


@pytest.mark.parametrize("rival", RIVALS, ids=repr)
def test_each_image_gets_as_many_tokens_as_dfmr_gives_it(rival, graded, reduce):
    decided, left = reduce(DFMR, graded), reduce(CountsOf(decider=DFMR, rival=rival), graded)
    counts = [len(each.tokens) for each in decided]
    assert len(set(counts)) > 1
    assert [len(each.tokens) for each in left] == counts
    for each, view, count in zip(left, graded, counts, strict=True):
        (alone,) = rival.reduce_to([view], [count])
        if not isinstance(rival, RandomDrop):
            assert torch.equal(each.tokens, alone.tokens)


def test_limits_and_wanted_factors_go_to_the_decider(graded, make_view, reduce):
    both = CountsOf(decider=DFMR, rival=TokenMerging())
    assert sum(len(each.tokens) for each in reduce(both, graded, max_tokens=40)) <= 40
    with pytest.raises(BudgetError):
        reduce(both, graded, max_tokens=3)
    (left,) = reduce(both, [make_view(6, 8, factor=3)])
    assert len(left.tokens) == 6
    with pytest.raises(PolicyError, match="max_tokens"):
        reduce(CountsOf(decider=FixedPooling(factor=2), rival=TokenMerging()), graded, max_tokens=40)


def test_newlines_of_the_decider_count_but_for_one(make_view, reduce):
    view = make_view(6, 8, num_row_tokens=1)
    (left,) = reduce(CountsOf(decider=FixedPooling(factor=2), rival=RandomDrop()), [view])
    # 3 x 4 tokens and 3 newlines; a selection has one newline.
    assert len(left.tokens) == view.num_tokens(2) - 1 == 14


def test_it_is_as_its_parts_are():
    assert CountsOf(decider=DFMR, rival=AttentionSelection()).needs_attention
    assert not CountsOf(decider=DFMR, rival=TokenMerging()).needs_attention
    both = CountsOf(decider=RandomPooling(seed=1), rival=RandomDrop(seed=2)).keyed(step=3, stream=4)
    assert both.decider == RandomPooling(seed=1, step=3, stream=4)
    assert both.rival == RandomDrop(seed=2, step=3, stream=4)
    assert both.pixel_factor == 1


def test_bad_pairs():
    with pytest.raises(PolicyError, match="rival: expected a reducer that keeps a count"):
        CountsOf(decider=DFMR, rival=FixedPooling(factor=2))
    with pytest.raises(PolicyError, match="decider: expected pixel_factor 1 as the rival's, got 2"):
        CountsOf(decider=ImageDownsampling(factor=2), rival=RandomDrop())
