import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.model.connectors import TokenCompressor, averaging_matrix, group_places
from edgevlm.model.layout import Layout


@given(st.integers(1, 80), st.data())
def test_averaging_matrix_rows_are_averages(num_inputs, data):
    num_outputs = data.draw(st.integers(1, num_inputs))
    matrix = averaging_matrix(num_inputs, num_outputs)
    assert matrix.shape == (num_outputs, num_inputs)
    torch.testing.assert_close(matrix.sum(1), torch.ones(num_outputs))
    assert (matrix >= 0).all()


def test_averaging_matrix_of_a_grid_is_average_pooling():
    tokens = torch.randn(64, 3)
    pooled = torch.nn.functional.avg_pool2d(tokens.T.view(1, 3, 8, 8), 2).flatten(2)[0].T
    torch.testing.assert_close(averaging_matrix(64, 16) @ tokens, pooled)


@pytest.mark.parametrize("act", ["gelu", "silu", "relu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 16), (16, 16), (30, 7), (1, 1)])
def test_compressor_starts_as_the_average(num_inputs, num_outputs, act):
    compressor = TokenCompressor(num_inputs, num_outputs, hidden_act=act)
    first, second = compressor.average_weights()
    with torch.no_grad():
        compressor.linear_1.weight.copy_(first)
        compressor.linear_2.weight.copy_(second)
        compressor.linear_1.bias.zero_()
        compressor.linear_2.bias.zero_()
        tokens = 3 * torch.randn(2, num_inputs, 5)
        torch.testing.assert_close(
            compressor(tokens), averaging_matrix(num_inputs, num_outputs) @ tokens, rtol=1e-5, atol=1e-5
        )


def test_uncompressed_positions():
    # Two words, an image of 16 tokens as 4, two words; grid rows 0-3, 4-7, ...: first group is 0, 1, 4, 5.
    visual = torch.tensor([[False, False, True, True, True, True, False, False]])
    positions = Layout.of(visual, [4]).uncompressed_positions(torch.arange(8)[None], [group_places(16, 4)], 16)
    assert positions.tolist() == [[0, 1, 2 + 2, 2 + 4, 2 + 10, 2 + 12, 18, 19]]
