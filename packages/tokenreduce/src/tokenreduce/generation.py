"""What `generate` needs around a reduced prompt: a mask, length limits, and the caller's own prompt in the answer."""

from typing import Any

import torch

from tokenreduce.errors import PlaceholderError


def check_cache(model: Any, arguments: dict[str, Any]) -> None:
    """Raises PlaceholderError for a cache from before beside a prompt with images.

    `generate` finds the new part of such a prompt by the cache's length, and reduced images have made that shorter.
    """
    cache, prompt = arguments.get("past_key_values"), arguments.get("inputs")
    prompt = arguments.get("input_ids") if prompt is None else prompt
    if cache is None or prompt is None or not cache.get_seq_length():
        return
    if bool((prompt == model.config.image_token_id).any()):
        raise PlaceholderError(
            "past_key_values: expected an empty cache in generate beside image placeholders, got one of "
            f"{cache.get_seq_length()} tokens; call forward for later turns"
        )


def given_mask(model: Any, arguments: dict[str, Any]) -> torch.Tensor | None:
    """The caller's mask, or the one `generate` would infer from pad tokens in the prompt; None where neither is."""
    mask, input_ids = arguments.get("attention_mask"), arguments.get("input_ids")
    if mask is not None or input_ids is None:
        return mask
    pad, eos = (_setting(model, arguments, name) for name in ("pad_token_id", "eos_token_id"))
    ends = eos if isinstance(eos, list) else [eos]
    if pad is None or pad in ends:
        return None
    return input_ids.ne(pad).long()


def shorten_limits(model: Any, arguments: dict[str, Any], num_dropped: int) -> None:
    """Lowers limits that count the prompt by the columns it lost, so that as many new tokens fit as before."""
    for limit, new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = _setting(model, arguments, limit)
        if num_dropped and value and _setting(model, arguments, new_tokens) is None:
            arguments[limit] = max(value - num_dropped, 0)


def restore_prompt(output: Any, prompt: torch.Tensor, num_columns: int) -> Any:
    """Puts the caller's prompt back in front of the new tokens, so that `output[:, prompt_length:]` is the answer."""
    if not isinstance(output, torch.Tensor):
        output.sequences = restore_prompt(output.sequences, prompt, num_columns)
        return output
    copies = output.shape[0] // prompt.shape[0]
    return torch.cat([prompt.repeat_interleave(copies, dim=0), output[:, num_columns:]], dim=1)


def _setting(model: Any, arguments: dict[str, Any], name: str) -> Any:
    """An option of this call: from its arguments, else from its generation config, else from the model's."""
    given = arguments.get("generation_config")
    for value in (arguments.get(name), getattr(given, name, None), getattr(model.generation_config, name, None)):
        if value is not None:
            return value
    return None
