from dataclasses import replace

import pytest
import torch

from stagetrain.compressors import Units, compressor_named
from stagetrain.compressors.q_former import PAPER_SHAPE, QFormer, QFormerShape, small_shape
from stagetrain.errors import CompressionError

SHAPE = QFormerShape(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32)


def make(num_queries: int = 4) -> QFormer:
    torch.manual_seed(0)
    return QFormer(24, num_queries, SHAPE)


def units(num_units: int = 3, num_tokens: int = 10, seed: int = 0) -> Units:
    torch.manual_seed(seed)
    return Units((1, num_tokens), torch.randn(num_units, num_tokens, 24))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_bert_base_has_the_papers_105m_parameters() -> None:
    """Table 3's figure is of BLIP-2's own query transformer, which reads 1,408 features."""
    with torch.device("meta"):
        module = QFormer(1408, 32, PAPER_SHAPE)
        own, narrow = num_parameters(module.former), num_parameters(QFormer(1024, 32, PAPER_SHAPE).former)
    assert own == pytest.approx(105e6, rel=0.01)
    assert narrow == 101_598_720
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 768 + 3072 + 4 * 768
    cross = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    assert own == 12 * layer + 6 * cross + 2 * 768


def test_the_paper_has_32_queries_of_576_tokens() -> None:
    """1,024 tokens over 32 layers, as Table 3 prints."""
    assert compressor_named("q_former").count((24, 24), 18) == 32
    assert 32 * compressor_named("q_former").count((24, 24), 18) == 1024


def test_states_are_the_queries_outputs_over_one_unit_at_a_time() -> None:
    module, given = make().eval(), units()
    got = module(given, 3)
    assert got.shape == (3, 4, 24)
    for index in range(3):
        alone = Units((1, 10), given.states[index : index + 1])
        torch.testing.assert_close(module(alone, 3)[0], got[index], rtol=1e-5, atol=1e-6)
    queries = module.former(query_embeds=module.queries[None], encoder_hidden_states=given.states[:1])
    torch.testing.assert_close(module.output(queries.last_hidden_state)[0], got[0], rtol=1e-5, atol=1e-6)


def test_a_smaller_unit_uses_the_first_queries() -> None:
    module, given = make().eval(), units(num_tokens=5)
    got = module(given, 3)
    assert got.shape == (3, 2, 24)
    queries = module.queries[:2].expand(3, -1, -1)
    expected = module.output(module.former(query_embeds=queries, encoder_hidden_states=given.states).last_hidden_state)
    torch.testing.assert_close(got, expected)


def test_every_parameter_and_the_visual_tokens_get_a_gradient() -> None:
    module, given = make(), units()
    given.states.requires_grad_()
    module(given, 3).square().sum().backward()
    assert given.states.grad is not None
    assert given.states.grad.abs().sum() > 0
    # A key's bias moves all products of a query alike: softmax takes it away.
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert name.endswith("key.bias") or parameter.grad.abs().sum() > 0, name


def test_queries_differ_from_the_beginning() -> None:
    got = make().eval()(units(1), 3)[0]
    assert all((got[0] - other).abs().max() > 1e-3 for other in got[1:])


def test_half_precision_comes_back_as_it_went_in() -> None:
    module, given = make().to(torch.bfloat16).eval(), units()
    got = module(Units(given.sides, given.states.to(torch.bfloat16)), 3)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), make().eval()(given, 3), rtol=0.1, atol=0.1)


def test_more_queries_than_there_are_is_an_error() -> None:
    with pytest.raises(CompressionError, match="at most 4 queries a unit, got 10 visual tokens at stride 2"):
        make()(units(), 2)


@pytest.mark.parametrize(
    "wrong", [{"hidden_size": 0}, {"num_layers": 0}, {"num_heads": 3}, {"dropout": 1.0}, {"num_layers": True}]
)
def test_impossible_shapes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(CompressionError, match="q_former: expected"):
        replace(SHAPE, **wrong)


@pytest.mark.parametrize(("hidden_size", "width", "heads"), [(64, 64, 4), (896, 768, 12), (512, 512, 8), (33, 33, 3)])
def test_the_small_one_is_as_wide_as_the_decoder(hidden_size: int, width: int, heads: int) -> None:
    shape = small_shape(hidden_size)
    assert (shape.hidden_size, shape.num_layers, shape.num_heads) == (width, 2, heads)
    module = compressor_named("q_former").build(hidden_size, 4)
    assert module is not None
    assert module(Units((1, 6), torch.zeros(2, 6, hidden_size)), 3).shape == (2, 2, hidden_size)


def test_the_papers_size_has_a_name() -> None:
    with torch.device("meta"):
        module = compressor_named("q_former_base").build(1408, 32)
    assert isinstance(module, QFormer)
    assert module.shape == PAPER_SHAPE
