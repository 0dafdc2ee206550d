"""Forward passes in bfloat16, everything that is kept in float32."""

import pytest
import torch

from verbdistill import DistillConfig, distill
from verbdistill.models.parts import decoder_layers


def config(**changes):
    steps = {f"num_{name}_steps": 6 for name in ("verbalization", "interaction", "sft")}
    rates = {f"{name}_lr": 1e-3 for name in ("verbalization", "interaction", "sft")}
    return DistillConfig(**(steps | rates | {"lora_rank": None, "num_warmup_steps": 2} | changes))


def types_of(model):
    """Types of a projection's results, forward by forward."""
    seen = []
    projection = decoder_layers(model)[0].mlp.up_proj
    handle = projection.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    return seen, handle


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation_steps": 2, "lora_rank": 4}, {"verbalizer": "decoder", "gradient_checkpointing": True}],
    ids=["plain", "accumulated-lora", "decoder-checkpointed"],
)
def test_only_forward_passes_are_in_bfloat16(trained_teacher, llava, batches, changes):
    results = {}
    for mixed in (False, True):
        student = llava(2, seed=2)
        seen, handle = types_of(student)
        result = distill(trained_teacher, student, batches, config(mixed_precision=mixed, **changes))
        handle.remove()
        assert set(seen) == {torch.bfloat16 if mixed else torch.float32}
        kept = [*student.parameters(), *result.student_verbalizers.parameters()]
        assert {parameter.dtype for parameter in kept} == {torch.float32}
        results[mixed] = result
    for name, losses in results[False].losses.items():
        assert results[True].losses[name] == pytest.approx(losses, rel=0.05, abs=0.02), name
        assert results[True].losses[name] != losses, name
