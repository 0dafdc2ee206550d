"""Every family as a pair, vocabularies padded differently: verbalization, interaction, finetuning."""

import copy

import pytest
import torch

from verbdistill import DistillConfig, TargetError, Verbalizers, ar_loss, distill, pairwise_kl, response_states
from verbdistill.data.collating import RecordBatches
from verbdistill.data.pairing import PairRecordBatches
from verbdistill.losses.heads import shared_heads
from verbdistill.models.parts import final_norm, vision_part
from verbdistill.verbalizers.bodies import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_bodies_of_every_kind_learn_and_teach(family, mixture, kind):
    """One step of each: bodies on the labels, the student through frozen bodies on its teacher."""
    batch = RecordBatches(family.usable(mixture), family.processor, batch_size=3, seed=0)(0)
    teacher, student = family.model("teacher"), family.model("student")
    spoken = {}
    for role, model, layers in (("teacher", teacher, (1, 2, 3)), ("student", student, (1, 2))):
        verbalizers = Verbalizers(model, layers, kind, 2, torch.Generator().manual_seed(0))
        with torch.no_grad():
            states = response_states(model, batch, layers, whole=verbalizers.reads_whole)
        losses = []
        optimizer = torch.optim.AdamW(verbalizers.parameters(), lr=1e-3)
        for _ in range(3):
            loss = sum(ar_loss(part, verbalizers.head, states.labels) for part in verbalizers.features(states))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0], losses
        assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.zero_grad()
        spoken[role] = verbalizers.requires_grad_(False)
    with torch.no_grad():
        states = response_states(teacher, batch, (1, 2, 3), whole=spoken["teacher"].reads_whole)
        theirs = spoken["teacher"].features(states)
    states = response_states(student, batch, (1, 2), whole=spoken["student"].reads_whole)
    heads = shared_heads(spoken["teacher"].head, spoken["student"].head, states.labels)
    pairs = pairwise_kl(theirs, heads[0], spoken["student"].features(states), heads[1])
    assert pairs.sums.shape == (2, 3)
    pairs.weighted(torch.full((2, 3), 1 / 3)).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in spoken["student"].parameters())
    assert all(parameter.grad is None for parameter in final_norm(student).parameters())


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_pairs_distil(family, mixture, lora_rank):
    records = family.usable(mixture)
    batches = PairRecordBatches(records, family.processor, family.processor, batch_size=2, seed=0)
    teacher, student = family.model("teacher"), family.model("student")
    before = copy.deepcopy(student.state_dict())
    config = DistillConfig(
        num_verbalization_steps=2,
        num_interaction_steps=2,
        num_sft_steps=1,
        lora_rank=lora_rank,
        num_warmup_steps=0,
        gradient_checkpointing=True,
    )
    result = distill(teacher, student, batches, config)
    assert result.student_targets == (1, 2)
    assert result.teacher_targets == (1, 2, 3)
    after = student.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".layers." in name for name in changed)
    tower = vision_part(student)
    if tower is not None:
        # The tower stays, the projector learns.
        prefix = next(name for name, module in student.named_modules() if module is tower)
        assert {name for name in changed if name.startswith(prefix) and "merger" not in name} == set()
        assert any("merger" in name or "projector" in name for name in changed)


def test_a_teacher_with_fewer_targets_is_refused(text_family, mixture):
    batches = RecordBatches(text_family.usable(mixture), text_family.processor, batch_size=1, seed=0)
    config = DistillConfig(num_verbalization_steps=1, num_interaction_steps=1, num_sft_steps=1)
    with pytest.raises(TargetError):
        distill(text_family.model("student"), text_family.model("teacher"), batches, config)
