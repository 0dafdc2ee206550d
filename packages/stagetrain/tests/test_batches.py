import pickle  # noqa: TID251  # what a worker process is sent
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagetrain import Batches, ImageGroups, Sample, SingleRecords
from stagetrain.errors import ConfigError, ImageUnreadableError, SampleError
from vlmpress.data import Record, Turn


class Names:
    """A collator that gives the samples' epochs and numbers; numbers in `bad` cannot be used."""

    def __init__(self, bad: frozenset[int] = frozenset()) -> None:
        self.bad = bad

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        return Sample(sample.images, (Record(f"{epoch} {index}", sample.images, sample.records[0].turns),))

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        numbers = [[int(part) for part in sample.records[0].id.split()] for sample in samples]
        for _, index in numbers:
            if index in self.bad:
                raise (SampleError if index % 2 else ImageUnreadableError)(f"sample {index}:\nbad")
        return {"numbers": torch.tensor(numbers)}


def pictures(count: int) -> ImageGroups:
    return ImageGroups([Record(str(n), (Path(f"{n}.png"),), (Turn("q", "x"),)) for n in range(count)])


def mixture(count: int, seed: int = 0, share: float = 0.6) -> SingleRecords:
    """Records with one image, two or none, and text of many lengths."""
    source = random.Random(seed)
    made = []
    for number in range(count):
        images = (Path("a.png"), Path("b.png"))[: source.choice((1, 1, 2)) if source.random() < share else 0]
        made.append(Record(str(number), images, (Turn("q", "x" * source.randint(1, 900)),)))
    return SingleRecords(made)


def numbers(batches: Batches) -> list[list[list[int]]]:
    return [batches[number]["numbers"].tolist() for number in range(len(batches))]


def test_batches_are_a_pure_function_of_the_step() -> None:
    groups = pictures(7)
    batches = Batches(groups, Names(), 4, 14, seed=3)
    in_order = [batches[step]["numbers"] for step in range(14)]
    again = Batches(groups, Names(), 4, 14, seed=3)
    for step in (13, 0, 6, 6, 2, 9):
        assert torch.equal(again[step]["numbers"], in_order[step])
    drawn = torch.cat(in_order).tolist()
    for epoch in range(8):
        assert sorted(index for place, index in drawn[7 * epoch : 7 * epoch + 7] if place == epoch) == list(range(7))
    other = Batches(groups, Names(), 4, 14, seed=4)
    assert any(not torch.equal(other[step]["numbers"], in_order[step]) for step in range(14))
    assert drawn[:7] != [[0, index] for _, index in drawn[7:14]]


def test_the_shuffled_order_is_the_one_of_recorded_runs() -> None:
    batches = Batches(pictures(11), Names(), 4, 6, seed=5)
    expected = []
    for epoch in range(3):
        order = list(range(11))
        random.Random(f"order 5 {epoch}").shuffle(order)
        expected += [[epoch, index] for index in order]
    assert [one for batch in numbers(batches) for one in batch] == expected[:24]


@given(
    st.sampled_from(["shuffled", "length", "modality_length"]),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
def test_every_sample_comes_once_an_epoch(order: str, count: int, size: int, seed: int, share: float) -> None:
    samples = mixture(count, seed, share)
    batches = Batches(samples, Names(), size, 3 * count // size + 6, seed, order)  # type: ignore[arg-type]
    made = numbers(batches)
    seen = [(epoch, index) for batch in made for epoch, index in batch]
    assert all(len(batch) == size for batch in made)
    assert len(set(seen)) == len(seen)
    assert {index for epoch, index in seen if epoch == 0} == set(range(count))
    assert {index for epoch, index in seen if epoch == 1} == set(range(count))
    again = pickle.loads(pickle.dumps(batches))
    for number in reversed(range(len(batches))):
        assert again[number]["numbers"].tolist() == made[number]
    if order == "modality_length":
        assert all(len({bool(samples[index].images) for _, index in batch}) == 1 for batch in made)


@pytest.mark.parametrize("order", ["length", "modality_length"])
def test_batches_are_of_similar_length_in_no_order_of_length(order: str) -> None:
    samples = mixture(1000)
    lengths = [samples.measure(index) for index in range(1000)]
    made = numbers(Batches(samples, Names(), 8, 250, 1, order))  # type: ignore[arg-type]
    whole = [batch for batch in made if len({epoch for epoch, _ in batch}) == 1]
    assert len(whole) >= 246
    texts = [[lengths[index][0] for _, index in batch] for batch in whole]
    spreads = sorted(max(batch) - min(batch) for batch in texts)
    assert spreads[len(spreads) // 2] < 60
    # One sample more or less than a multiple of the batch is between one kind and the next.
    assert sum(len({lengths[index][1] for _, index in batch}) > 1 for batch in whole) <= 20
    means = [sum(batch) / len(batch) for batch in texts]
    rising = sum(one < other for one, other in pairwise(means))
    assert 0.4 * len(means) < rising < 0.6 * len(means)
    assert sorted(made[0]) != sorted(made[125])


def test_a_bad_sample_is_left_out_and_named() -> None:
    batches = Batches(pictures(9), Names(frozenset({2, 5})), 3, 6, seed=0)
    made = [batches[number] for number in range(6)]
    whole = numbers(Batches(pictures(9), Names(), 3, 6, seed=0))
    for batch, expected in zip(made, whole, strict=True):
        bad = [index for _, index in expected if index in (2, 5)]
        assert batch["numbers"].tolist() == [[epoch, index] for epoch, index in expected if index not in (2, 5)]
        assert batch.get("skipped", []) == [f"sample {index}: bad" for index in bad]
    assert sum("skipped" in batch for batch in made) >= 2


def test_a_batch_of_bad_samples_takes_those_that_follow() -> None:
    order = [index for batch in numbers(Batches(pictures(8), Names(), 2, 4, seed=0)) for _, index in batch]
    batch = Batches(pictures(8), Names(frozenset(order[2:5])), 2, 4, seed=0)[1]
    assert batch["numbers"].tolist() == [[0, order[5]]]
    assert batch["skipped"] == [f"sample {index}: bad" for index in order[2:5]]


def test_where_nothing_can_be_used_the_run_ends() -> None:
    with pytest.raises(SampleError, match=r"batch 1: expected a usable sample, got 10 bad ones: sample \d"):
        Batches(pictures(5), Names(frozenset(range(5))), 2, 4, seed=0)[1]


class Together(Names):
    """Cannot put two samples together."""

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        if len(samples) > 1:
            raise SampleError("two samples")
        return super().__call__(samples)


def test_an_error_that_is_no_samples_fault_is_raised() -> None:
    with pytest.raises(SampleError, match="two samples"):
        Batches(pictures(5), Together(), 2, 4, seed=0)[0]


def test_settings_are_checked() -> None:
    for samples, size, count in (([], 1, 1), (pictures(1), 0, 1), (pictures(1), 1, 0)):
        with pytest.raises(ConfigError, match="expected samples and positive batch_size and num_batches"):
            Batches(samples, Names(), size, count, 0)
    with pytest.raises(ConfigError, match="expected one of shuffled, length, modality_length, got 'random'"):
        Batches(pictures(1), Names(), 1, 1, 0, "random")  # type: ignore[arg-type]
