"""Which linear layers of a model read the same input, and which op before them can take a factor's inverse.

A factor s per input channel changes nothing when each consumer's column i is multiplied by s_i and
channel i of what they read is divided by it. That works when the op before is linear in its own
weight and only these layers read its output: a norm, or the rows of a linear layer with nothing but
sums and products per channel in between (values through attention; the plain half of a gated MLP).
Nothing passes a GELU.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from quantpack.errors import CalibrationError

_QKV = ("q_proj", "k_proj", "v_proj")

# (norm, the linear layers that read it, and nothing else does); names as they end, counted from a common prefix.
_NORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("input_layernorm", tuple(f"self_attn.{name}" for name in _QKV)),  # Llama, Mistral, Qwen2, Qwen2-VL
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("layer_norm1", tuple(f"self_attn.{name}" for name in _QKV)),  # CLIP, SigLIP, SigLIP2
    ("layer_norm2", ("mlp.fc1",)),
    ("norm1", ("attn.qkv",)),  # Qwen2-VL and Qwen2.5-VL vision blocks
    ("norm2", ("mlp.fc1",)),
    ("norm2", ("mlp.gate_proj", "mlp.up_proj")),
    ("layernorm_before", tuple(f"attention.{name}" for name in _QKV)),  # InternVL vision layers
    ("layernorm_after", ("mlp.fc1",)),
    ("layer_norm", ("linear_1",)),  # InternVL's projector
    ("layernorm", ("mlp.fc1",)),  # the pooling head of SigLIP and SigLIP2
    ("query_norm", ("q_proj",)),  # cross attention from text to visual tokens
    ("visual_norm", ("k_proj", "v_proj")),
    ("ffn_norm", ("ffn_up",)),
)
# (linear layer whose rows are divided, the one that reads them, a sibling that must be there too)
_ROWS: tuple[tuple[str, str, str], ...] = (
    ("up_proj", "down_proj", "gate_proj"),
    ("v_proj", "o_proj", "q_proj"),
    ("v_proj", "out_proj", "q_proj"),
    ("v_proj", "projection_layer", "q_proj"),
    ("qkv", "proj", ""),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpBefore:
    """A norm, or rows of a linear layer, that makes what a site reads.

    Attributes:
        name: Of the module.
        module: Its weight's first dimension, and its bias if any, are the channels.
        first_channel: Where the site's channels begin in it: past queries and keys for a fused qkv.
    """

    name: str
    module: nn.Module
    first_channel: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteOps:
    """The modules of one site.

    Attributes:
        linears: By name; they read the same input.
        before: What can take the inverse of a factor; None: nothing can.
    """

    linears: Mapping[str, nn.Linear]
    before: OpBefore | None


def find_sites(root: nn.Module, prefix: str = "") -> tuple[SiteOps, ...]:
    """Every nn.Linear below `root`, each in exactly one site, in the order of the modules.

    Args:
        root: A layer or a whole model; looked at, not run.
        prefix: Put before every name, with its dot.
    """
    modules = {prefix + name: module for name, module in root.named_modules()}
    linears = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    groups: dict[str, tuple[str, ...]] = {}
    norms: dict[str, str] = {}
    for norm, readers in _NORMS:
        for stem in _stems(modules, norm):
            names = tuple(stem + reader for reader in readers)
            if all(name in linears and name not in groups for name in names):
                groups |= dict.fromkeys(names, names)
                norms[names[0]] = stem + norm
    sites = []
    for name in linears:
        names = groups.get(name, (name,))
        if name == names[0]:
            before = _norm_before(modules, norms.get(name), linears[name]) or _rows_before(linears, name)
            sites.append(SiteOps(linears={each: linears[each] for each in names}, before=before))
    return tuple(sites)


@torch.no_grad()
def fold(ops: SiteOps, factor: Tensor) -> None:
    """Divides the op before by `factor` [I] in place, in its own dtype; the readers' weights are the caller's.

    Raises:
        CalibrationError: Nothing before the site can take it, or the factor is not I positive finite numbers.
    """
    name = next(iter(ops.linears))
    num_inputs = ops.linears[name].in_features
    if ops.before is None:
        raise CalibrationError(f"{name}: expected a site with an op before it that takes a factor, found none")
    if factor.shape != (num_inputs,) or not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise CalibrationError(f"{name}: expected a factor of {num_inputs} positive numbers, got {list(factor.shape)}")
    module = ops.before.module
    channels = slice(ops.before.first_channel, ops.before.first_channel + num_inputs)
    for values in (module.weight, module.bias if hasattr(module, "bias") else None):
        if isinstance(values, Tensor):
            precise = torch.promote_types(values.dtype, torch.float32)
            divisor = factor.to(values.device, precise).reshape(-1, *[1] * (values.dim() - 1))
            values[channels] = (values[channels].to(precise) / divisor).to(values.dtype)


def _stems(modules: Mapping[str, nn.Module], ending: str) -> list[str]:
    """What stands before `ending` in the names that end in it, at a dot."""
    return [name[: -len(ending)] for name in modules if name == ending or name.endswith(f".{ending}")]


def _norm_before(modules: Mapping[str, nn.Module], name: str | None, reader: nn.Linear) -> OpBefore | None:
    if name is None or not _is_scale_of_norm(modules[name], reader.in_features):
        return None
    return OpBefore(name=name, module=modules[name])


def _is_scale_of_norm(norm: nn.Module, num_channels: int) -> bool:
    """True when doubling weight and bias doubles the output; Gemma's norms multiply by 1 + weight and fail."""
    params = dict(norm.named_parameters())
    if "weight" not in params or not params.keys() <= {"weight", "bias"}:
        return False
    if any(tuple(param.shape) != (num_channels,) for param in params.values()):
        return False
    values = torch.linspace(-1, 2, num_channels)[None]
    # On made-up weights, for the model's own may be far away on the meta device, and without what would fetch them.
    probe = copy.copy(norm)
    probe.__dict__.pop("forward", None)
    ones, twos = ({name: torch.full((num_channels,), value) for name in params} for value in (1.0, 2.0))
    with torch.no_grad():
        once, twice = (functional_call(probe, weights, (values,)) for weights in (ones, twos))
    return bool(torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-6) and once.abs().max() > 0)


def _rows_before(linears: Mapping[str, nn.Linear], name: str) -> OpBefore | None:
    for writer, reader, sibling in _ROWS:
        stem = name[: -len(reader)]
        if name != stem + reader or (stem and not stem.endswith(".")) or stem + writer not in linears:
            continue
        if sibling and stem + sibling not in linears:
            continue
        found, num_inputs = linears[stem + writer], linears[name].in_features
        num_parts = 3 if writer == "qkv" else 1
        # Grouped values feed several heads each: one row would need several factors.
        if found.out_features == num_parts * num_inputs:
            first = (num_parts - 1) * num_inputs
            return OpBefore(name=stem + writer, module=found, first_channel=first)
    return None
