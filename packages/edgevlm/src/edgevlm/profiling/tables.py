"""Profiles for people and for machines."""

from typing import Any

from edgevlm.profiling.parts import PARTS
from edgevlm.profiling.profile import Profile


def profile_fields(profile: Profile) -> dict[str, Any]:
    """A profile as JSON: giga multiply-accumulates and GFLOPS are of 1e9, bytes plain numbers."""
    weights, layout = profile.weights, profile.layout
    return {
        "num_visual_tokens": layout.num_seen,
        "num_encoder_tokens": layout.num_encoded,
        "visual_layout": layout.description,
        "text_tokens": profile.num_text_tokens,
        "params": profile.num_params,
        "params_by_module": profile.params_by_module,
        "gmacs_linear": profile.macs_linear / 1e9,
        "gmacs_linear_as_run": profile.macs_linear_as_run / 1e9,
        "gflops": profile.flops / 1e9,
        "gflops_by_module": {part: flops / 1e9 for part, flops in profile.flops_by_module.items()},
        "gflops_last_logits": profile.flops_last_logits / 1e9,
        "gflops_paper": profile.flops_paper / 1e9,
        "bytes": {name: getattr(weights, name) for name in ("float32", "bfloat16", "int8", "int4")},
        "int8_scale_bytes": weights.int8_overhead,
        "int4_scale_and_zero_bytes": weights.int4_overhead,
        "params_quantized": weights.num_quantized,
        "params_kept_bfloat16": weights.num_kept,
        "kv_cache_bytes": profile.kv_cache_bytes,
        "kv_cache_bytes_per_token": profile.kv_cache_bytes_per_token,
        "kv_cache_dtype": "bfloat16",
    }


def profile_table(profiles: dict[str, Profile]) -> str:
    """Profiles side by side, one column each."""
    rows: list[list[str]] = [["", *profiles]]
    rows += [[label, *map(show, profiles.values())] for label, show in _ROWS]
    rows += [
        [f"  {part}", *(f"{profile.params_by_module.get(part, 0):,}" for profile in profiles.values())]
        for part in (*PARTS, "other")
        if any(part in profile.params_by_module for profile in profiles.values())
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [_line(cells, widths) for cells in rows]
    layouts = [f"{name}: {profile.layout.description}" for name, profile in profiles.items()]
    return "\n".join([*lines, "", *layouts, *_NOTES])


def _line(cells: list[str], widths: list[int]) -> str:
    rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *rest]).rstrip()


_ROWS: list[tuple[str, Any]] = [
    ("visual tokens: encoder", lambda p: f"{p.layout.num_encoded:,}"),
    ("visual tokens: language model", lambda p: f"{p.layout.num_seen:,}"),
    ("text tokens", lambda p: f"{p.num_text_tokens:,}"),
    ("linear GMACs, the paper's way", lambda p: f"{p.macs_linear / 1e9:,.1f}"),
    ("linear GMACs, as run", lambda p: f"{p.macs_linear_as_run / 1e9:,.1f}"),
    ("GFLOPs, attention included", lambda p: f"{p.flops / 1e9:,.1f}"),
    ("GFLOPs, last logits only", lambda p: f"{p.flops_last_logits / 1e9:,.1f}"),
    ("weights, float32, MB", lambda p: f"{p.weights.float32 / 1e6:,.0f}"),
    ("weights, bfloat16, MB", lambda p: f"{p.weights.bfloat16 / 1e6:,.0f}"),
    ("weights, INT8, MB", lambda p: f"{p.weights.int8 / 1e6:,.0f}"),
    ("weights, INT4, MB", lambda p: f"{p.weights.int4 / 1e6:,.0f}"),
    ("  scales and zero points, MB", lambda p: f"{p.weights.int4_overhead / 1e6:,.0f}"),
    ("  left in bfloat16, MB", lambda p: f"{2 * p.weights.num_kept / 1e6:,.0f}"),
    ("KV cache of the prompt, MB", lambda p: f"{p.kv_cache_bytes / 1e6:,.1f}"),
    ("KV cache of a token, KB", lambda p: f"{p.kv_cache_bytes_per_token / 1e3:,.1f}"),
    ("parameters", lambda p: f"{p.num_params:,}"),
    ("parameters / 2^30", lambda p: f"{p.num_params / 2**30:.3f}"),
]
_NOTES = [
    "GMACs, GFLOPs: 1e9, of one prefill with one image; head at every position but in 'last logits only'.",
    "The paper's way counts the fusion's decoder layer over visual and text tokens; as run, its queries and",
    "feed-forward cover text only. INT8 and INT4 leave embeddings, head, patch embedding, norms and biases in",
    "bfloat16; INT4 has groups of 128, a 2-byte scale and a 4-bit zero point each. KV cache in bfloat16.",
]
