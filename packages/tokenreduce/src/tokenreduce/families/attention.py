"""How much attention each token of a vision tower's layer receives, whatever kernel the layer itself runs on.

Shape suffixes: B images, S tokens, D channels, A heads, K channels of a head, N tokens without CLS.
"""

from typing import Any

import torch


def attention_layers(tower: torch.nn.Module) -> list[torch.nn.Module]:
    """The tower's attention modules, first layer first."""
    return [module for module in tower.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]


@torch.no_grad()
def attention_received(layer: Any, hidden_BSD: torch.Tensor, num_tokens: int) -> torch.Tensor:  # noqa: N803
    """Mean attention over the heads that each token receives, float32 [B, N], without gradient.

    From the CLS token where there is one (S = N + 1, CLS first), else the mean over all queries.
    """
    num_special = hidden_BSD.shape[1] - num_tokens
    received = [_received(layer, hidden_1SD, num_special) for hidden_1SD in hidden_BSD.split(1)]
    return torch.cat(received)[:, num_special:]


def _received(layer: Any, hidden_1SD: torch.Tensor, num_special: int) -> torch.Tensor:  # noqa: N803
    queries_AxK = _heads(layer, "q", hidden_1SD)[0]  # noqa: N806
    keys_ASK = _heads(layer, "k", hidden_1SD)[0]  # noqa: N806
    if num_special:
        queries_AxK = queries_AxK[:, :1]  # noqa: N806
    scores = queries_AxK.float() @ keys_ASK.float().transpose(1, 2) * layer.scale
    return scores.softmax(dim=-1).mean(dim=(0, 1))[None]


def _heads(layer: Any, name: str, hidden_1SD: torch.Tensor) -> torch.Tensor:  # noqa: N803
    projected = getattr(layer, f"{name}_proj")(hidden_1SD)
    norm = getattr(layer, f"{name}_norm", None)
    if norm is not None:
        projected = norm(projected)
    heads: torch.Tensor = projected.unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)
    return heads
