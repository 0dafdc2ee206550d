import torch

from stagetrain.compressors import DROPPED, Units, compressor_named


def make_units(num_units: int, num_tokens: int, seed: int | None) -> Units:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return Units((1, num_tokens), torch.empty(num_units, num_tokens, 0), generator=generator)


def kept(slots: torch.Tensor) -> list[list[int]]:
    return [[token for token, slot in enumerate(row) if slot != DROPPED] for row in slots.tolist()]


def test_all_units_of_an_evaluation_have_the_same_draw() -> None:
    drop, units = compressor_named("random"), make_units(5, 24, 3)
    slots = drop.assign(units, 4)
    assert all(torch.equal(slots[0], row) for row in slots)
    # Other units before these, of another shape too, do not move it; nor does torch's own random state.
    drop.assign(make_units(2, 9, 3), 4)
    torch.rand(3)
    assert torch.equal(drop.assign(units, 4), slots)
    assert torch.equal(drop.assign(make_units(1, 24, 3), 4)[0], slots[0])
    assert not torch.equal(drop.assign(make_units(1, 24, 4), 4)[0], slots[0])


def test_an_evaluation_draws_what_every_other_process_draws() -> None:
    assert kept(compressor_named("random").assign(make_units(1, 24, 3), 4)) == [[9, 11, 17, 18, 19, 22]]


def test_training_draws_anew_for_every_unit_from_torch() -> None:
    drop, units = compressor_named("random"), make_units(6, 24, None)
    torch.manual_seed(0)
    first = kept(drop.assign(units, 4))
    second = kept(drop.assign(units, 4))
    assert len({tuple(row) for row in first + second}) == 12
    torch.manual_seed(0)
    assert kept(drop.assign(units, 4)) == first


def test_every_token_is_kept_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    slots = compressor_named("random").assign(make_units(4000, 10, None), 5)
    shares = (slots != DROPPED).float().mean(0)
    assert (slots != DROPPED).sum(1).unique().tolist() == [2]
    # Five standard deviations of a share of 0.2 among 4,000.
    assert float((shares - 0.2).abs().max()) < 5 * (0.2 * 0.8 / 4000) ** 0.5
