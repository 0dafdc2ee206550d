import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrain import (
    SCHEMES,
    TABLE_1,
    CompressionSetting,
    Schedule,
    Stage,
    always_compressed,
    auroraedge_schedule,
    edge_schedule,
    named_schedule,
)
from stagetrain.errors import ScheduleError, UnknownSchemeError


@pytest.mark.parametrize(
    ("num_layers", "expected"), [(32, (2, 16)), (28, (2, 14)), (4, (1, 2)), (2, (1, 1)), (80, (5, 40))]
)
def test_layers_scale_with_depth(num_layers: int, expected: tuple[int, int]) -> None:
    stages = named_schedule("three_stage_deeper", num_layers).stages
    settings = [stage.compression for stage in stages]
    assert tuple(one.layer for one in settings[:2] if one is not None) == expected
    assert settings[2] is None


def test_every_scheme_ends_without_compression_and_fills_the_run() -> None:
    for name in (*TABLE_1, "plain"):
        for num_layers in range(2, 70):
            schedule = named_schedule(name, num_layers)
            settings = [stage.compression for stage in schedule.stages]
            assert settings[-1] is None
            assert all(1 <= one.layer < num_layers for one in settings if one is not None)
            assert {schedule.stage_index(step, 100) for step in range(100)} == set(range(len(schedule.stages)))


@given(st.integers(1, 500), st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_stages_follow_in_order_and_end_at_the_nearest_step(num_steps: int, weights: list[float]) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    schedule = Schedule("drawn", tuple(Stage(fraction=min(fraction, 1.0)) for fraction in fractions))
    indices = [schedule.stage_index(step, num_steps) for step in range(num_steps)]
    assert indices == sorted(indices)
    for index in range(len(fractions)):
        end = sum(fractions[: index + 1]) * num_steps
        assert abs(sum(found <= index for found in indices) - end) <= 0.5 + 1e-6


def test_table_7s_splits_are_stages_of_other_lengths() -> None:
    schedule = named_schedule("two_stage", 32, (0.9, 0.1))
    assert [stage.fraction for stage in schedule.stages] == [0.9, 0.1]
    with pytest.raises(ScheduleError, match="expected 2 fractions, got 3"):
        named_schedule("two_stage", 32, (0.2, 0.2, 0.6))


def test_always_compressed_keeps_its_setting() -> None:
    setting = CompressionSetting(layer=2, stride=8)
    assert always_compressed(setting).kept_compression == setting
    assert all(named_schedule(name, 8).kept_compression is None for name in SCHEMES)


def test_auroraedge_frees_one_part_after_the_other() -> None:
    stages = named_schedule("auroraedge", 28).stages
    assert [stage.trainable for stage in stages] == [
        ("connectors",),
        ("connectors", "language"),
        ("vision", "connectors", "language"),
    ]
    # Epochs 3, 3, 2 in batches of 32, 32, 16.
    assert [stage.fraction for stage in stages] == pytest.approx([0.3, 0.3, 0.4])
    assert [1e-3 * stage.learning_rate_scale for stage in stages] == pytest.approx([1e-3, 2e-5, 1e-6])
    assert [stage.batch_size(32) for stage in stages] == [32, 32, 16]
    assert named_schedule("auroraedge", 28).restarts
    assert auroraedge_schedule((2, 1, 1)).stages[0].fraction == pytest.approx(6 / 13)


def test_thirds_divide_evenly() -> None:
    schedule = named_schedule("three_stage_wider", 32)
    assert [schedule.stage_index(step, 9) for step in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert schedule.stage_index(9, 9) == 2


def test_borders_are_the_first_steps_of_stages() -> None:
    schedule = Schedule("short", (Stage(fraction=0.7), Stage(fraction=0.1), Stage(fraction=0.2)))
    for num_steps in (1, 2, 3, 10, 97):
        borders = schedule.borders(num_steps)
        assert (borders[0], borders[-1]) == (0, num_steps)
        owners = [schedule.stage_index(step, num_steps) for step in range(num_steps)]
        assert owners == [index for index in range(3) for _ in range(borders[index], borders[index + 1])]


def test_a_batch_is_of_whole_samples() -> None:
    assert Stage(fraction=1.0, batch_size_scale=1 / 3).batch_size(6) == 2
    with pytest.raises(ScheduleError, match="batches of 1 a whole number of samples, got 0"):
        Stage(fraction=1.0, batch_size_scale=0.5).batch_size(1)


def test_a_scheme_for_connectors_trains_them_first() -> None:
    first, second = edge_schedule(["compressor.", "fusion."], 0.25, (2.0, 1.0)).stages
    assert (first.trainable, first.fraction, first.learning_rate_scale) == (("compressor.", "fusion."), 0.25, 2.0)
    assert (second.trainable, second.fraction) == ((), 0.75)


@pytest.mark.parametrize(
    "fields",
    [
        {"fraction": 0.0},
        {"fraction": 1.5},
        {"fraction": float("nan")},
        {"fraction": 1.0, "learning_rate_scale": 0.0},
        {"fraction": 1.0, "learning_rate_scale": float("inf")},
        {"fraction": 1.0, "batch_size_scale": 0.0},
    ],
)
def test_impossible_stages_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ScheduleError, match="expected"):
        Stage(**fields)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ScheduleError, match="sum to 1"):
        Schedule("half", (Stage(fraction=0.5),))
    with pytest.raises(ScheduleError, match="at least one stage"):
        Schedule("none", ())
    with pytest.raises(ScheduleError, match="at least 2 layers"):
        named_schedule("two_stage", 1)
    with pytest.raises(UnknownSchemeError, match="two_stage"):
        named_schedule("edge", 4)
    with pytest.raises(ScheduleError, match="scheme edge"):
        edge_schedule([])
    with pytest.raises(ScheduleError, match="a step of a run"):
        named_schedule("plain", 4).stage_index(-1, 5)


def test_a_name_is_one_printable_line():
    stage = Stage(fraction=1.0)
    with pytest.raises(ScheduleError, match=r"^schedule: expected a printable name, got 'a\\nb'$"):
        Schedule("a\nb", (stage,))
