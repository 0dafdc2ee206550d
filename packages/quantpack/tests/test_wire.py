from dataclasses import fields
from typing import Any

import pytest

from quantpack import Block, PartRecipe, PartReport, QuantizedModel, Recipe, Scheme, SchemeError
from quantpack.calibration.sites import Method
from quantpack.methods.awq import Awq
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.methods.mbq import Mbq
from quantpack.methods.nearest import Nearest
from quantpack.methods.registry import METHODS
from quantpack.methods.smoothquant import SmoothQuant
from quantpack.search.options import EcmSearch
from quantpack.sweeping import standard_settings
from quantpack.wire import (
    ecm_search_from_proto,
    ecm_search_to_proto,
    method_from_proto,
    method_to_proto,
    part_report_from_proto,
    part_report_to_proto,
    quantized_model_from_proto,
    quantized_model_to_proto,
    recipe_from_proto,
    recipe_to_proto,
    scheme_from_proto,
    scheme_to_proto,
    setting_from_proto,
    setting_to_proto,
)
from vlmpress.quantpack.v1 import quantpack_pb2 as pb


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(),
        Scheme(granularity="tensor", bits=3),
        Scheme(granularity="channel", symmetric=True, axis="in"),
        Scheme(group_size=7),
        Scheme(granularity="rows", num_rows=5),
        Scheme(granularity="agq", blocks=(Block(share=0.1, group_size=32), Block(share=0.9, num_channels=4))),
    ],
    ids=str,
)
def test_scheme_round_trip(scheme: Scheme) -> None:
    assert scheme_from_proto(scheme_to_proto(scheme)) == scheme


@pytest.mark.parametrize(
    "message",
    [
        pb.Scheme(),
        pb.Scheme(bits=5, granularity=pb.GRANULARITY_TENSOR),
        pb.Scheme(bits=4),
        pb.Scheme(bits=4, granularity=9),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_GROUP),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_ROWS),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_AGQ),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_AGQ, blocks=[pb.Block(share=0.5)]),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_TENSOR, blocks=[pb.Block(share=1)]),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_TENSOR, axis=7),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_CHANNEL, group_size=64),
    ],
    ids=str,
)
def test_schemes_that_do_not_exist_are_refused(message: pb.Scheme) -> None:
    with pytest.raises(SchemeError, match="expected"):
        scheme_from_proto(message)


METHODS_WITH_SETTINGS: list[Method] = [
    *(make() for make in METHODS.values()),
    Gptq(damping=0.0, block_size=7, activation_order=True),
    Awq(num_ratios=3, num_clips=1),
    SmoothQuant(alpha=0.0),
    Mbq(num_ratios=1),
    Ecm(alpha=0.3, rounding="gptq"),
]


@pytest.mark.parametrize("method", METHODS_WITH_SETTINGS, ids=str)
def test_method_round_trip(method: Method) -> None:
    sent = pb.Method.FromString(method_to_proto(method).SerializeToString())
    assert method_from_proto(sent) == method


def test_every_method_and_setting_has_its_field() -> None:
    chosen = pb.Method.DESCRIPTOR.oneofs_by_name["method"].fields
    assert [field.name for field in chosen] == list(METHODS)
    for field in chosen:
        settings: Any = METHODS[field.name]()
        assert [each.name for each in field.message_type.fields] == [each.name for each in fields(settings)]


def test_settings_left_out_are_the_defaults() -> None:
    messages = (
        (pb.Method(rtn=pb.Rtn()), Nearest()),
        (pb.Method(gptq=pb.Gptq()), Gptq()),
        (pb.Method(awq=pb.Awq(num_clips=3)), Awq(num_clips=3)),
        (pb.Method(smoothquant=pb.SmoothQuant()), SmoothQuant()),
        (pb.Method(mbq=pb.Mbq()), Mbq()),
        (pb.Method(ecm=pb.Ecm(alpha=0.5)), Ecm(alpha=0.5)),
    )
    for message, method in messages:
        assert method_from_proto(message) == method
    scheme = scheme_to_proto(Scheme())
    assert recipe_from_proto(pb.Recipe(default=pb.PartRecipe(scheme=scheme))) == Recipe()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.Method(), "method: expected one of rtn, gptq, .*got none"),
        (pb.Method(gptq=pb.Gptq(damping=-1)), "method gptq: damping"),
        (pb.Method(gptq=pb.Gptq(damping=float("nan"))), "method gptq: damping"),
        (pb.Method(gptq=pb.Gptq(block_size=0)), "method gptq: block_size"),
        (pb.Method(awq=pb.Awq(num_clips=20)), "method awq: num_clips"),
        (pb.Method(awq=pb.Awq(num_ratios=0)), "method awq: num_ratios"),
        (pb.Method(smoothquant=pb.SmoothQuant(alpha=2)), "method smoothquant: alpha"),
        (pb.Method(mbq=pb.Mbq(num_ratios=0)), "method mbq: num_ratios"),
        (pb.Method(ecm=pb.Ecm(alpha=float("inf"))), "method ecm: alpha"),
        (pb.Method(ecm=pb.Ecm(rounding=9)), "method ecm: rounding: expected one of nearest, gptq, got 9"),
    ],
    ids=str,
)
def test_methods_that_do_not_exist_are_refused(message: pb.Method, text: str) -> None:
    with pytest.raises(SchemeError, match=text):
        method_from_proto(message)


GPTQ_ROWS = PartRecipe(scheme=Scheme(granularity="rows", num_rows=3), method=Gptq(activation_order=True))
RECIPES = [
    Recipe(),
    Recipe(default=GPTQ_ROWS, embeddings="int4"),
    Recipe(parts={"vision": None, "language": GPTQ_ROWS}),
    Recipe(
        parts={"vision": PartRecipe(method=Ecm(alpha=0.4)), "language": None, "other": None},
        tensors={"model.language_model.layers.0.mlp.up_proj.weight": Scheme(granularity="agq"), "b": Scheme(bits=3)},
    ),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_recipe_round_trip(recipe: Recipe) -> None:
    sent = pb.Recipe.FromString(recipe_to_proto(recipe).SerializeToString())
    assert recipe_from_proto(sent) == recipe


def test_recipes_that_do_not_exist_are_refused() -> None:
    good = pb.PartRecipe(scheme=scheme_to_proto(Scheme()))
    bad_scheme = pb.Scheme(bits=5, granularity=pb.GRANULARITY_TENSOR)
    bad = pb.PartRecipe(scheme=bad_scheme)
    for message, text in (
        (pb.Recipe(), "recipe: expected a default, got none"),
        (pb.Recipe(default=pb.PartRecipe()), "recipe: default: scheme: granularity: expected one of .*got 0"),
        (pb.Recipe(default=bad), "recipe: default: bits: expected 2 to 4, got 5"),
        (pb.Recipe(default=good, vision=pb.PartChoice()), "recipe: vision: expected recipe or keep, got neither"),
        (pb.Recipe(default=good, other=pb.PartChoice(recipe=bad)), "recipe: other: bits"),
        (pb.Recipe(default=good, tensors={"a.weight": bad_scheme}), "recipe: tensor 'a.weight': bits"),
        (pb.Recipe(default=good, embeddings=7), "recipe: embeddings: expected one of keep, int4, got 7"),
    ):
        with pytest.raises(SchemeError, match=text):
            recipe_from_proto(message)


@pytest.mark.parametrize(
    "search", [EcmSearch(), EcmSearch(max_drop=1.0, bits=3, group_size=16, axis="in", rounding="gptq")], ids=str
)
def test_search_round_trip(search: EcmSearch) -> None:
    assert ecm_search_from_proto(ecm_search_to_proto(search)) == search


def test_searches_that_do_not_exist_are_refused() -> None:
    assert ecm_search_from_proto(pb.EcmSearch(max_accuracy_drop=0.01)) == EcmSearch()
    for message in (
        pb.EcmSearch(),
        pb.EcmSearch(max_accuracy_drop=-0.1),
        pb.EcmSearch(max_accuracy_drop=1.5),
        pb.EcmSearch(max_accuracy_drop=float("nan")),
        pb.EcmSearch(max_accuracy_drop=0.1, bits=5),
        pb.EcmSearch(max_accuracy_drop=0.1, axis=5),
        pb.EcmSearch(max_accuracy_drop=0.1, rounding=5),
    ):
        with pytest.raises(SchemeError, match="expected"):
            ecm_search_from_proto(message)


def test_a_search_goes_as_the_paper_does() -> None:
    parts = EcmSearch(max_drop=0.02, bits=3, group_size=16, rounding="gptq").parts()
    assert list(parts) == ["vision", "language"]
    assert [part.space.symmetric for part in parts.values()] == [True, False]
    assert [len(part.alphas) for part in parts.values()] == [11, 1]
    for part in parts.values():
        assert (part.max_drop, part.rounding) == (0.02, "gptq")
        assert (part.space.bits, part.space.group_size) == (3, 16)


def test_setting_round_trip() -> None:
    for setting in standard_settings():
        assert setting_from_proto(setting_to_proto(setting)) == setting
    message = setting_to_proto(standard_settings()[0])
    message.ClearField("kind")
    assert setting_from_proto(message).kind == message.name
    with pytest.raises(SchemeError, match="setting 'a': recipe: expected a default"):
        setting_from_proto(pb.SweepSetting(name="a"))
    with pytest.raises(SchemeError, match="setting: expected a name"):
        setting_from_proto(pb.SweepSetting(recipe=message.recipe))


@pytest.mark.parametrize("recipe", [None, *RECIPES[1:3]], ids=str)
def test_quantized_model_round_trip(recipe: Recipe | None) -> None:
    model = QuantizedModel(scheme=Scheme(), num_codes=11, code_bytes_packed=6, code_bytes_compressed=20, recipe=recipe)
    assert quantized_model_from_proto(quantized_model_to_proto(model)) == model


def test_part_report_round_trip() -> None:
    report = PartReport(
        part="vision",
        num_weights=10,
        code_bytes_packed=5,
        code_bytes_compressed=4,
        cr_codes=1.25,
        entropy_bits_per_code=3.1,
        bits_per_weight=4.5,
        bytes_on_disk=6,
    )
    assert part_report_from_proto(part_report_to_proto(report)) == report
