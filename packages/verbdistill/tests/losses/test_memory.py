"""No array with a vocabulary axis holds more tokens than its budget has room for."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.logit_l2 import pairwise_logit_l2
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl
from verbdistill.losses.sorted_distance import pairwise_sorted_distance
from verbdistill.losses.truncated import likeliest_words, truncated_pairwise_kl

TOKENS, WORDS, WIDTH = 50, 20011, 8
BUDGET = 30 * WORDS * 4
EVERYTHING = TOKENS * WORDS * 4


@dataclass
class Watch:
    """The largest array that was made, inside operations too, and the most bytes that lived at once."""

    largest: int = 0
    most: int = 0


def watched(run):
    # The allocator's own record: an operation's temporary never shows in what operations return.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    changes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return Watch(max(changes), max(itertools.accumulate(changes)))


def match(num_student, num_teacher):
    weights = torch.zeros(num_student, num_teacher)
    weights[torch.arange(num_student), torch.arange(num_student)] = 1
    return weights


def runs(pair):
    arguments = (pair.teacher, pair.teacher_head, pair.student, pair.student_head)
    budget = {"logits_bytes": BUDGET}
    kept = [likeliest_words(part, pair.teacher_head, 3, **budget) for part in pair.teacher]
    weights = match(len(pair.student), len(pair.teacher))
    return {
        "kl": lambda: pairwise_kl(*arguments, **budget).weighted(weights).backward(),
        "l2": lambda: pairwise_logit_l2(*arguments, **budget).weighted(weights).backward(),
        "sorted": lambda: pairwise_sorted_distance(*arguments, **budget).weighted(weights).backward(),
        "truncated": lambda: (
            truncated_pairwise_kl(*zip(*kept, strict=True), pair.student, pair.student_head, **budget)
            .weighted(weights)
            .backward()
        ),
        "kept": lambda: likeliest_words(pair.teacher[0], pair.teacher_head, 3, **budget),
        "last": lambda: last_kl(
            pair.teacher[0], pair.teacher_head, pair.student[0], pair.student_head, **budget
        ).backward(),
        "ar": lambda: ar_loss(pair.student[0], pair.student_head, torch.arange(TOKENS), **budget).backward(),
    }


@pytest.mark.parametrize("name", ["kl", "l2", "sorted", "truncated", "kept", "last", "ar"])
def test_all_that_lives_at_once_stays_in_the_budget(case, name):
    pair = case(TOKENS, WORDS, (WIDTH, WIDTH), (5, 3), dtype=torch.float32)
    watch = watched(runs(pair)[name])
    features = (5 + 3) * TOKENS * WIDTH * 4
    assert watch.largest <= BUDGET < EVERYTHING
    # Gradients of both sides, a match's, and the student's.
    assert watch.most <= BUDGET + 4 * features


def test_memory_is_flat_in_the_number_of_candidates(case):
    most = []
    for num_teacher in (3, 12):
        pair = case(TOKENS, WORDS, (WIDTH, WIDTH), (num_teacher, 3), dtype=torch.float32)
        most.append(watched(runs(pair)["kl"]).most)
    # A candidate adds its features' gradient, and the budget is filled to within a token.
    assert most[1] <= most[0] + 9 * TOKENS * WIDTH * 4 + 8 * WORDS * 4
