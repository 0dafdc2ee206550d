from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmpress.cli import UserError
from vlmpress_services.pipeline.config import RunConfig
from vlmpress_services.pipeline.pareto.config import parse_pareto, read_pareto, variants_of


def variants(text: str) -> Any:
    return variants_of(parse_pareto(text, "file"), "file")


def test_each_axis_alone_beside_the_base() -> None:
    found = variants("base: {seed: 3}\naxes: {edge.fusion: [none, cross], reduction.tau: [0.5]}")
    base = replace(RunConfig(), seed=3)
    assert [variant.name for variant in found] == ["base", "edge.fusion none", "edge.fusion cross", "reduction.tau 0.5"]
    assert [variant.config for variant in found] == [
        base,
        replace(base, edge=replace(base.edge, fusion="none")),
        replace(base, edge=replace(base.edge, fusion="cross")),
        replace(base, reduction=replace(base.reduction, tau=0.5)),
    ]


def test_every_combination() -> None:
    found = variants("combine: all\naxes: {edge.fusion: [none, cross], teacher.scheme: [plain, three_stage_deeper]}")
    assert [(each.config.edge.fusion, each.config.teacher.scheme) for each in found] == [
        ("none", "plain"),
        ("none", "three_stage_deeper"),
        ("cross", "plain"),
        ("cross", "three_stage_deeper"),
    ]


def test_blocks_of_agq_are_values_too() -> None:
    fine, coarse = "[{share: 0.1, group_size: 32}, {share: 0.9, num_channels: 2}]", "[{num_channels: 4}]"
    found = variants(f"base: {{pack: {{granularity: agq}}}}\naxes: {{pack.blocks: [{fine}, {coarse}]}}")
    assert [[block.share for block in each.config.pack.blocks] for each in found] == [[], [0.1, 0.9], [1.0]]
    assert found[1].name == "pack.blocks [{share: 0.1, group_size: 32}, {share: 0.9, num_channels:..."


def test_a_value_that_is_the_base_s_is_not_made_twice() -> None:
    assert [each.name for each in variants("axes: {edge.fusion: [combined, none]}")] == ["base", "edge.fusion none"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {edge.fusions: [none]}", "file: .*: edge.fusions: Unexpected keyword argument, got 'none'"),
        ("axes: {edge.fusion: [nothing]}", "edge.fusion: Input should be"),
        ("axes: {edge.fusion: []}", "file: axes.edge.fusion: List should have at least 1 item"),
        ("axes: {out: [a]}", "file: axes: out: expected a field that models depend on"),
        ("axes: {runner: [ray]}", "file: axes: runner: expected a field"),
        ("base: {}", "file: axes: Field required"),
        ("axes: {}\nmeasure: [teachers]", "file: measure.0: Input should be"),
        ("axes: {}\nmeasure: []", "file: measure: Tuple should have at least 1 item"),
        ("axes: [", "file: expected YAML"),
        ("[1]", "file: top level"),
        ("", "file: top level"),
        ("combine: all\naxes: {seed: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17], edge.learning_rate: "
         "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}", "expected at most 256 variants, got 289"),
        ("axes: {pack.blocks: [[{share: 1.0}]]}", "expected blocks with granularity agq only, got granularity group"),
        ("base: {pack: {granularity: agq}}\naxes: {pack.blocks: [[{share: 0.5}]]}", "expected shares of blocks"),
        ("axes: {reduction.tau: [0]}", "reduction.tau: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        variants(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a readable YAML file"):
        read_pareto(tmp_path / "none.yaml")
