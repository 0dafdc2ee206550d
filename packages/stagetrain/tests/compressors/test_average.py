import pytest
import torch

from stagetrain.compressors import Units, compressor_named
from stagetrain.compressors.average import window


def assign(name: str, sides: tuple[int, int], stride: int) -> list[int]:
    states = torch.empty(1, sides[0] * sides[1], 0)
    return compressor_named(name).assign(Units(sides, states), stride)[0].tolist()


@pytest.mark.parametrize(("sides", "stride"), [((3, 5), 4), ((1, 7), 3), ((7, 1), 2), ((2, 2), 9), ((4, 4), 1)])
def test_windows_are_neighbours_in_raster_order(sides: tuple[int, int], stride: int) -> None:
    windows: list[list[int]] = []
    for token in range(sides[0] * sides[1]):
        if not windows or len(windows[-1]) == stride:
            windows.append([])
        windows[-1].append(token)
    expected = [index for index, members in enumerate(windows) for _ in members]
    assert assign("average", sides, stride) == expected


@pytest.mark.parametrize(
    ("sides", "stride"), [((5, 6), 4), ((3, 7), 6), ((1, 8), 4), ((8, 1), 4), ((2, 2), 9), ((4, 5), 7), ((3, 3), 1)]
)
def test_rectangles_cover_the_grid(sides: tuple[int, int], stride: int) -> None:
    height, width = window(stride)
    rectangles: dict[tuple[int, int], list[int]] = {}
    for row in range(sides[0]):
        for column in range(sides[1]):
            rectangles.setdefault((row // height, column // width), []).append(row * sides[1] + column)
    slots = assign("average_2d", sides, stride)
    assert compressor_named("average_2d").count(sides, stride) == len(rectangles)
    for slot, key in enumerate(sorted(rectangles)):
        assert [token for token, own in enumerate(slots) if own == slot] == rectangles[key]


@pytest.mark.parametrize(
    ("stride", "expected"), [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (6, (2, 3)), (7, (1, 7)), (8, (2, 4)), (64, (8, 8))]
)
def test_a_window_is_nearly_square(stride: int, expected: tuple[int, int]) -> None:
    assert window(stride) == expected
