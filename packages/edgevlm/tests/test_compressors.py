import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm import EdgeVlmConfig, EdgeVlmForConditionalGeneration, ModelInputError
from edgevlm.model.compressors import ConvCompressor, MaxPoolCompressor, MlpCompressor
from edgevlm.model.grids import area_matrices, averaging_matrix, mean_places, most_square
from edgevlm.model.layout import Layout

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
AWKWARD = [((13, 18), 256, 64), ((13, 18), 256, 256), ((1, 256), 256, 64), ((16, 16), 256, 64), ((7, 3), 64, 9),
           ((8, 8), 64, 9), ((2, 5), 16, 1), ((1, 1), 16, 4), ((5, 3), 16, 6), ((4, 4), 16, 16)]  # fmt: skip


def fresh_conv(num_inputs, num_outputs, num_features=3):
    compressor = ConvCompressor(num_inputs, num_outputs, num_features)
    with torch.no_grad():
        compressor.pool.weight.fill_(1 / math.prod(compressor.pool.kernel_size))
        compressor.pool.bias.zero_()
        torch.nn.init.dirac_(compressor.mix.weight)
        compressor.mix.bias.zero_()
    return compressor


def padded(shapes, num_inputs, num_features=3):
    """Tokens of images with these grids, zero at padding."""
    tokens = torch.zeros(len(shapes), num_inputs, num_features)
    for image, (rows, columns) in zip(tokens, shapes, strict=True):
        image[: rows * columns] = torch.randn(rows * columns, num_features)
    return tokens


def area_average(tokens, shape, cells):
    """Slow reference: every token cut into as many equal parts as there are cells along each side."""
    (height, width), (rows, columns) = shape, cells
    fine = tokens[: height * width].view(height, width, -1)
    fine = fine.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return fine.view(rows, height, columns, width, -1).mean((1, 3)).flatten(0, 1)


def largest(tokens, shape, cells):
    """Slow reference: cell by cell, a token in part in a cell is in it."""
    (height, width), (rows, columns) = shape, cells
    grid = tokens[: height * width].view(height, width, -1)
    return torch.stack([
        grid[i * height // rows : -(-(i + 1) * height // rows), j * width // columns : -(-(j + 1) * width // columns)]
        .flatten(0, 1).amax(0)
        for i, j in itertools.product(range(rows), range(columns))
    ])  # fmt: skip


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


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3), st.integers(1, 7),
       st.integers(1, 7))  # fmt: skip
def test_area_matrices_cut_tokens_into_parts(shapes, rows, columns):
    tokens = padded(shapes, 81).double()
    weights = area_matrices(torch.tensor(shapes), (rows, columns), 81)
    torch.testing.assert_close(weights.sum(2), torch.ones_like(weights[..., 0]))
    for image, shape, matrix in zip(tokens, shapes, weights, strict=True):
        torch.testing.assert_close(matrix @ image, area_average(image, shape, (rows, columns)))


@pytest.mark.parametrize("act", ["gelu", "silu", "relu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 16), (16, 16), (30, 7), (1, 1)])
def test_mlp_starts_as_the_average(num_inputs, num_outputs, act):
    compressor = MlpCompressor(num_inputs, num_outputs, hidden_act=act)
    first, second = compressor.average_weights()
    with torch.no_grad():
        compressor.linear_1.weight.copy_(first)
        compressor.linear_2.weight.copy_(second)
        compressor.linear_1.bias.zero_()
        compressor.linear_2.bias.zero_()
        tokens = 3 * torch.randn(2, num_inputs, 5)
        torch.testing.assert_close(compressor(tokens), averaging_matrix(num_inputs, num_outputs) @ tokens, **TOLERANCE)


@pytest.mark.parametrize(("shape", "num_inputs", "num_outputs"), AWKWARD)
def test_conv_starts_as_the_average_of_each_image_s_own_cells(shape, num_inputs, num_outputs):
    compressor, cells = fresh_conv(num_inputs, num_outputs), most_square(num_outputs)
    shapes = [shape, (1, num_inputs), most_square(num_inputs)]
    tokens = padded(shapes, num_inputs)
    compressed = compressor(tokens, torch.tensor(shapes))
    for image, own, got in zip(tokens, shapes, compressed, strict=True):
        torch.testing.assert_close(got, area_average(image, own, cells), **TOLERANCE)


@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(64, 16), (64, 1), (64, 9), (64, 64), (16, 2)])
def test_conv_of_square_grids_is_a_convolution(num_inputs, num_outputs):
    compressor = ConvCompressor(num_inputs, num_outputs, 3)
    tokens = torch.randn(2, num_inputs, 3)
    square, cells = most_square(num_inputs), most_square(num_outputs)
    grid = area_average(tokens.transpose(0, 1).flatten(1), square, compressor.grid).view(*compressor.grid, 2, 3)
    rows, columns = compressor.pool.kernel_size
    for image in range(2):
        for i, j in itertools.product(range(cells[0]), range(cells[1])):
            cell = grid[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns, image]
            pooled = (cell.permute(2, 0, 1) * compressor.pool.weight[:, 0]).sum((1, 2)) + compressor.pool.bias
            expected = compressor.mix.weight[:, :, 0, 0] @ pooled + compressor.mix.bias
            torch.testing.assert_close(compressor(tokens)[image, i * cells[1] + j], expected, **TOLERANCE)


@pytest.mark.parametrize(("shape", "num_inputs", "num_outputs"), AWKWARD)
def test_maxpool_of_each_image_s_own_grid(shape, num_inputs, num_outputs):
    compressor, cells = MaxPoolCompressor(num_inputs, num_outputs), most_square(num_outputs)
    square = most_square(num_inputs)
    shapes = [shape, square]
    tokens = padded(shapes, num_inputs) - 5  # All below zero, so that padding would show.
    compressed = compressor(tokens, torch.tensor(shapes))
    for image, own, got in zip(tokens, shapes, compressed, strict=True):
        assert torch.equal(got, largest(image, own, cells))
    assert torch.equal(compressor(tokens[1:]), compressed[1:])


@pytest.mark.parametrize("kind", ["conv", "maxpool"])
def test_padding_takes_no_part(kind):
    compressor = ConvCompressor(256, 64, 3) if kind == "conv" else MaxPoolCompressor(256, 64)
    shapes = torch.tensor([(13, 18), (16, 16)])
    tokens = padded(shapes.tolist(), 256)
    noisy = tokens.clone()
    noisy[0, 13 * 18 :] = 100
    assert torch.equal(compressor(noisy, shapes), compressor(tokens, shapes))
    torch.testing.assert_close(compressor(tokens[:1], shapes[:1]), compressor(tokens, shapes)[:1], **TOLERANCE)


@pytest.mark.parametrize("kind", ["conv", "maxpool", "mlp"])
def test_places(kind):
    numbers = (256, 64)
    compressor = {"conv": lambda: ConvCompressor(*numbers, 3), "maxpool": lambda: MaxPoolCompressor(*numbers),
                  "mlp": lambda: MlpCompressor(*numbers, hidden_act="gelu")}[kind]()  # fmt: skip
    square = compressor.places(None, 2)
    assert len(square) == 2
    # Cells of 2 x 2 on a grid of 16 x 16: the first covers 0, 1, 16 and 17.
    assert square[0][:2].tolist() == [8, 10]
    assert square[0].dtype == torch.int64
    wide, whole = compressor.places(torch.tensor([(2, 8), (16, 16)]), 2)
    assert torch.equal(whole, square[1])
    if kind != "mlp":
        # Each token's row is in four of the eight rows of cells.
        assert wide.tolist() == [*range(8)] * 4 + [*range(8, 16)] * 4


def test_uncompressed_positions():
    # Two words, an image of 16 tokens as 4, two words; grid rows 0-3, 4-7, ...: first group is 0, 1, 4, 5.
    visual = torch.tensor([[False, False, True, True, True, True, False, False]])
    places = [mean_places(averaging_matrix(16, 4))]
    positions = Layout.of(visual, [4]).uncompressed_positions(torch.arange(8)[None], places, 16)
    assert positions.tolist() == [[0, 1, 2 + 2, 2 + 4, 2 + 10, 2 + 12, 18, 19]]


@pytest.mark.parametrize("vision", ["clip", "siglip2"])
@pytest.mark.parametrize("compressor", ["conv", "maxpool", "mlp"])
def test_a_fresh_model_s_compressed_tokens(tiny, compressor, vision):
    model = tiny.edge("none", vision, compressor=compressor).model
    inputs = tiny.inputs(model, [(7,), (7,), (7,)])
    inputs.pop("input_ids")
    features, valid = model.patch_features(**inputs)
    visual = model.multi_modal_projector(features) * valid[..., None]
    shapes = inputs.get("spatial_shapes", torch.tensor([(4, 4)] * 3)).tolist()
    seen = model.get_image_features(**inputs).pooler_output
    for image, shape, got in zip(visual, shapes, seen, strict=True):
        if compressor == "mlp":
            expected = averaging_matrix(16, 4) @ image
        else:
            expected = {"conv": area_average, "maxpool": largest}[compressor](image, shape, (2, 2))
        torch.testing.assert_close(got, expected, **TOLERANCE)


def test_printed_initialisation_of_conv_is_standard_normal(tiny):
    compressor = tiny.edge("none", compressor="conv", init="normal").model.compressor
    for weight in (compressor.pool.weight, compressor.mix.weight):
        assert weight.std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("compressor", ["conv", "maxpool"])
@pytest.mark.parametrize(("num_compressed", "fits"), [(1, True), (3, True), (16, True), (5, False), (13, False)])
def test_cells_must_fit_into_the_grid(tiny, compressor, num_compressed, fits):
    settings = {"vision_config": tiny.vision_config(), "text_config": tiny.text_config(), "compressor": compressor}
    if fits:
        model = EdgeVlmForConditionalGeneration(EdgeVlmConfig(**settings, num_compressed_tokens=num_compressed))
        tokens = model.model.get_image_features(torch.zeros(1, 3, 32, 32)).pooler_output
        assert tokens.shape[1] == num_compressed
    else:
        with pytest.raises(ModelInputError, match=r"num_compressed_tokens: .* fits into 4 x 4 for"):
            EdgeVlmConfig(**settings, num_compressed_tokens=num_compressed)
