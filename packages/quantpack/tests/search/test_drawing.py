import importlib.util
import xml.etree.ElementTree as ElementTree

import pytest

from quantpack.errors import MissingExtraError
from quantpack.search.agq import Trial
from quantpack.search.drawing import Point, trade_off_svg

POINTS = [
    Point(name="g128", kind="group", cr_codes=1.1, bits_per_weight=3.8, accuracy=0.9),
    Point(name="rows 2", kind="rows", cr_codes=1.25, bits_per_weight=3.3, accuracy=0.8),
]
TRIALS = [
    Trial(changed=(), cr_codes=1.1, bits_per_weight=3.8, accuracy=0.9, accepted=True),
    Trial(changed=("a",), cr_codes=1.2, bits_per_weight=3.5, accuracy=0.89, accepted=True),
    Trial(changed=("b",), cr_codes=1.3, bits_per_weight=3.2, accuracy=0.5, accepted=False),
]


def test_shows_every_name_and_is_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    svg = trade_off_svg(POINTS, {"AGQ": TRIALS}, 0.92)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert svg == trade_off_svg(POINTS, {"AGQ": TRIALS}, 0.92)
    for text in ("g128", "rows 2", "AGQ"):
        assert f">{text}</text>" in svg
    assert ElementTree.fromstring(trade_off_svg([], {}, None)) is not None


def test_a_name_is_no_formula() -> None:
    pytest.importorskip("matplotlib")
    name = r"$\no$ & <b>"
    point = Point(name=name, kind=name, cr_codes=1.1, bits_per_weight=3.8, accuracy=0.9)
    texts = [element.text for element in ElementTree.fromstring(trade_off_svg([point], {}, None)).iter()]
    assert texts.count(name) == 2


def test_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(MissingExtraError, match=r"vlmpress-quantpack\[plot\]"):
        trade_off_svg(POINTS, {}, None)
