"""The packed layer by itself."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantpack import Block, QuantizedTensor, Scheme, dequantize, quantize_tensor
from quantpack.container.packed import pack_tensor
from quantpack.hf.embedding import PackedEmbedding
from quantpack.hf.linear import PackedLinear, TiedLinear
from quantpack.hf.placing import Placement
from quantpack.hf.reading import NUM_THREADS, PackTensors
from quantpack.hf.storage import PackedWeight, packed_buffers

SCHEMES = (
    Scheme(granularity="tensor", symmetric=True),
    Scheme(granularity="channel", axis="in"),
    Scheme(group_size=10),
    Scheme(bits=3, granularity="rows", num_rows=4),
    Scheme(granularity="agq", blocks=(Block(share=0.2, group_size=3), Block(share=0.8, num_channels=2))),
)


def layer_of(quantized: QuantizedTensor, dtype: torch.dtype, *, bias: bool = True) -> PackedLinear:
    layer = PackedLinear(quantized.shape, quantized.scheme, scale_dtype=quantized.scales.dtype, bias=bias, dtype=dtype)
    fill(layer, quantized)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


def fill(module: PackedWeight, quantized: QuantizedTensor) -> None:
    buffers = packed_buffers(pack_tensor(quantized))
    names = {name for name, buffer in module.named_buffers() if name != "like"}
    assert names == buffers.keys()
    for name, tensor in buffers.items():
        assert getattr(module, name).shape == tensor.shape
        assert getattr(module, name).dtype == tensor.dtype
        setattr(module, name, tensor)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.granularity}, {scheme.bits}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(13, 27), (1, 1), (6, 3)])
def test_it_computes_with_the_dequantized_weight(scheme: Scheme, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    quantized = quantize_tensor(torch.randn(shape).to(dtype), scheme)
    layer = layer_of(quantized, dtype)
    weight = dequantize(quantized, dtype)
    assert torch.equal(layer.weight, weight)
    assert layer.weight.dtype == dtype
    inputs = torch.randn(2, 3, shape[1]).to(dtype)
    assert torch.equal(layer(inputs), F.linear(inputs, weight, layer.bias))


def test_a_cast_leaves_codes_and_scales_alone() -> None:
    torch.manual_seed(0)
    quantized = quantize_tensor(torch.randn(8, 24), Scheme(group_size=8))
    layer = layer_of(quantized, torch.float32)
    cast = copy.deepcopy(layer).to(torch.bfloat16)
    assert cast.weight.dtype == cast.bias.dtype == torch.bfloat16
    assert torch.equal(cast.weight, dequantize(quantized, torch.bfloat16))
    assert torch.equal(cast.to(torch.float32).weight, layer.weight)


def test_gradients_pass_through_to_the_inputs() -> None:
    torch.manual_seed(0)
    layer = layer_of(quantize_tensor(torch.randn(5, 4), Scheme()), torch.float32, bias=False)
    inputs = torch.randn(3, 4, requires_grad=True)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad, layer.weight.sum(0).expand(3, 4))
    assert not list(layer.parameters())


def test_autocast_computes_in_its_dtype() -> None:
    layer = layer_of(quantize_tensor(torch.randn(5, 4), Scheme()), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 4)).dtype == torch.bfloat16


def test_its_text_says_what_it_holds() -> None:
    layer = layer_of(quantize_tensor(torch.randn(5, 4), Scheme(bits=3)), torch.float32)
    assert repr(layer) == "PackedLinear(5, 4, bits=3, granularity=group, bias=True)"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.granularity}, {scheme.bits}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(13, 27), (1, 1), (6, 4)])
def test_an_embedding_gives_rows_of_the_dequantized_table(
    scheme: Scheme, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    quantized = quantize_tensor(torch.randn(shape).to(dtype), scheme)
    table = PackedEmbedding(shape, scheme, scale_dtype=dtype, padding_idx=None, dtype=dtype)
    fill(table, quantized)
    weight = dequantize(quantized, dtype)
    ids = torch.randint(0, shape[0], (2, 5))
    assert torch.equal(table(ids), F.embedding(ids, weight))
    assert table(ids).dtype == dtype
    assert table(ids[:, :0]).shape == (2, 0, shape[1])
    head = TiedLinear(table, None)
    inputs = torch.randn(3, shape[1]).to(dtype)
    assert torch.equal(head(inputs), F.linear(inputs, weight))
    assert not head.state_dict()
    assert torch.equal(copy.deepcopy(nn.ModuleList([table, head]))[1].weight, weight)


class CountingReader:
    """Stands in for a pack; counts what was read ahead."""

    def __init__(self) -> None:
        self.num_read = 0
        self.lock = threading.Lock()

    def tensor(self, name: str, dtype: torch.dtype | None) -> torch.Tensor:
        with self.lock:
            self.num_read += 1
        if name == "9":
            raise ValueError("damaged")
        return torch.full((1,), float(name))


class Model(nn.Module):
    _keep_in_fp32_modules = _keep_in_fp32_modules_strict = None

    def __init__(self) -> None:
        super().__init__()
        for number in range(20):
            self.register_buffer(str(number), torch.zeros(1))


def test_only_a_few_tensors_are_read_ahead() -> None:
    reader = CountingReader()
    placements = [Placement(target=str(number), sources=[(str(number), str(number))]) for number in range(9)]
    taken = []
    for name, tensor in PackTensors(reader, Model(), set(), "pack").stream(placements):
        assert tensor.item() == int(name)
        taken.append(name)
        assert reader.num_read <= len(taken) + 2 * NUM_THREADS + 1
    assert sorted(taken) == [str(number) for number in range(9)]


def test_a_fault_in_a_thread_reaches_the_caller_and_ends_the_threads() -> None:
    placements = [Placement(target=str(number), sources=[(str(number), str(number))]) for number in range(20)]
    stream = PackTensors(CountingReader(), Model(), set(), "pack").stream(placements)
    with pytest.raises(ValueError, match="damaged"):
        list(stream)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quantpack")]
