"""Interaction with every operation of Table 4d, every body and strategy, and pairs that are not alike."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from verbdistill import (
    ConfigError,
    DistillConfig,
    LocalTeacher,
    PairBatch,
    TargetError,
    Verbalizers,
    VerbalizersError,
    distill,
    head_of,
    interact,
    train_verbalizers,
)
from verbdistill.losses.heads import shared_heads
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl
from verbdistill.matching.strategies import STRATEGIES
from verbdistill.models.states import response_states
from verbdistill.steps.teaching import local_teacher

OPERATIONS = [
    ("ce", "none"),
    ("ce", "ce"),
    ("ce", "kl"),
    ("l2", "kl"),
    ("kl", "none"),
    ("kl", "ce"),
    ("l2_features", "none"),
    ("l2_features", "l2"),
    ("l2_hidden", "none"),
    ("l2_hidden", "kl"),
    ("none", "l2"),
    ("none", "kl"),
]


def config(**changes):
    values = {
        "num_verbalization_steps": 4,
        "num_interaction_steps": 16,
        "num_sft_steps": 0,
        "verbalization_lr": 3e-3,
        "interaction_lr": 3e-3,
        "num_warmup_steps": 5,
        "lora_rank": None,
        **changes,
    }
    return DistillConfig(**values)


@pytest.mark.parametrize(("intermediate", "last"), OPERATIONS)
def test_every_operation_learns(trained_teacher, llava, batches, intermediate, last):
    student = llava(2, seed=2, hidden_size=16)
    names = set(student.state_dict())
    result = distill(trained_teacher, student, batches, config(intermediate=intermediate, last=last))
    losses = result.losses["interaction"]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert set(student.state_dict()) == names
    assert len(result.matches) == (16 if intermediate in ("l2", "kl", "l2_features", "l2_hidden") else 0)
    assert len(result.target_losses["interaction"][0]) == (0 if intermediate == "none" else 2)
    assert (result.losses["interaction_last"] == [0.0] * 16) is (last == "none")
    assert (result.student_verbalizers is None) is (intermediate not in ("ce", "l2", "kl"))
    assert len(result.losses["verbalization_teacher"]) == (4 if intermediate in ("l2", "kl") else 0)


def test_interaction_loss_and_gradient_are_those_of_the_matched_pairs(trained_teacher, llava, batches):
    student = llava(2, seed=2)
    verbalizers = Verbalizers(student, (1, 2), generator=torch.Generator().manual_seed(1))
    teacher = LocalTeacher(trained_teacher, Verbalizers(trained_teacher, (1, 2, 3, 4), generator=torch.Generator()))
    begun = copy.deepcopy(student)
    told = config(num_interaction_steps=1, num_warmup_steps=0, betas=(0.0, 0.0), weight_decay=0.0, max_grad_norm=1e9)
    history = interact(teacher, student, verbalizers, batches, told)

    reference = Verbalizers(begun, (1, 2), generator=torch.Generator().manual_seed(1))
    batch = batches(4)
    answer = teacher.answer(4, batch)
    states = response_states(begun, batch, (1, 2))
    theirs, ours = shared_heads(teacher.head, reference.head, states.labels)
    features = reference.features(states)
    total = last_kl(answer.last, theirs, states.last, head_of(begun))
    for row, drawn in enumerate(history.matches[0]):
        (target,) = drawn
        pair = pairwise_kl([answer.targets[target]], theirs, [features[row]], ours)
        total = total + pair.weighted(torch.ones(1, 1)) / pair.num_tokens
        assert history.target_losses[0][row] == pytest.approx(float(pair.sums) / pair.num_tokens, rel=1e-5)
    assert history.losses[0] == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    # Without momentum a first step goes against the sign of the gradient.
    for (name, before), after in zip(begun.named_parameters(), student.parameters(), strict=True):
        if before.grad is None or "vision_tower" in name:
            continue
        clear = before.grad.abs() > 1e-4
        assert torch.equal((before - after)[clear].sign(), before.grad[clear].sign()), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs(trained_teacher, llava, batches, strategy):
    short = config(num_verbalization_steps=1, num_interaction_steps=2, strategy=strategy)
    result = distill(trained_teacher, llava(2, seed=2), batches, short)
    assert [len(targets) for targets in result.matches[0]] == [3 if strategy == "bottom_3" else 1] * 2


@pytest.mark.parametrize(("body", "depth"), [("mlp", 2), ("ffn", 1), ("decoder", 1), ("verb_ffn", 2)])
@pytest.mark.parametrize("parts", [1, 2])
def test_every_body_runs(trained_teacher, llava, batches, body, depth, parts):
    short = config(
        num_verbalization_steps=2,
        num_interaction_steps=2,
        verbalizer=body,
        verbalizer_depth=depth,
        accumulation_steps=parts,
        gradient_checkpointing=True,
    )
    result = distill(trained_teacher, llava(2, seed=2), batches, short)
    assert len(result.losses["interaction"]) == 2


def test_a_verbalizer_does_not_depend_on_the_other_targets(trained_teacher, batches):
    both, _ = train_verbalizers(trained_teacher, batches, config(), role="teacher", layers=(2, 4))
    one, losses = train_verbalizers(trained_teacher, batches, config(), role="teacher", layers=(2,))
    assert torch.equal(next(both.parameters()), next(one.parameters()))
    assert [len(row) for row in losses] == [1] * 4
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_teacher_and_student_may_have_batches_of_their_own(trained_teacher, llava, batches):
    """The same rows as a pair train the same student; response tokens left out change the mean."""
    short = config(num_interaction_steps=3)

    def pairs(index):
        return PairBatch(teacher=batches(index), student=batches(index))

    def some(index):
        rows = torch.arange(0, 16, 2)
        return PairBatch(teacher=batches(index), student=batches(index), teacher_rows=rows, student_rows=rows)

    students = [llava(2, seed=2) for _ in range(3)]
    losses = [
        distill(trained_teacher, student, source, short).losses
        for student, source in zip(students, (batches, pairs, some), strict=True)
    ]
    assert losses[0] == losses[1]
    assert torch.equal(students[0].lm_head.weight, students[1].lm_head.weight)
    assert losses[0]["verbalization_student"] == losses[2]["verbalization_student"]
    assert losses[0]["interaction"] != losses[2]["interaction"]


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_models_of_text_alone(lora_rank):
    def model(num_layers, seed):
        torch.manual_seed(seed)
        settings = LlamaConfig(
            vocab_size=12,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=num_layers,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        return LlamaForCausalLM(settings)

    def batches(index):
        ids = torch.randint(12, (4, 6), generator=torch.Generator().manual_seed(index))
        labels = ids.clone()
        labels[:, :3] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    short = config(num_interaction_steps=2, num_sft_steps=1, lora_rank=lora_rank)
    result = distill(model(3, 1), model(2, 2), batches, short)
    assert len(result.losses["interaction"]) == 2


def test_what_does_not_fit_is_refused(trained_teacher, llava, batches):
    student = llava(2, seed=2)
    verbalizers = Verbalizers(student, (1, 2))
    hidden = LocalTeacher(trained_teacher, None, layers=(1, 2))
    with pytest.raises(VerbalizersError, match="expected the student's verbalizers for kl, l2, ce"):
        interact(hidden, student, None, batches, config())
    with pytest.raises(VerbalizersError, match="got some for l2_hidden"):
        interact(hidden, student, verbalizers, batches, config(intermediate="l2_hidden"))
    with pytest.raises(ConfigError, match="alignment: expected words"):
        interact(hidden, student, verbalizers, batches, config(alignment="shared_words"))
    with pytest.raises(TargetError, match="got both or neither"):
        LocalTeacher(trained_teacher, None)
    with pytest.raises(VerbalizersError, match="expected verbalizers for kl and l2"):
        local_teacher(trained_teacher, config())
    with pytest.raises(ConfigError, match="role: expected one of teacher, student"):
        train_verbalizers(student, batches, config(), role="pupil")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "best"}, "strategy: expected one of random"),
        ({"intermediate": "mse"}, "intermediate: expected one of kl"),
        ({"intermediate": "none", "last": "none"}, "expected something to learn"),
        ({"alignment": "sorted", "last": "l2"}, "expected none beside an l2 loss"),
        ({"verbalizer_depth": 3}, "verbalizer_depth: expected one of 1, 2"),
        ({"verbalizer_depth": True}, "verbalizer_depth: expected one of 1, 2"),
        ({"gradient_checkpointing": 1}, "expected true or false"),
        ({"save_steps": 0}, "save_steps: expected a whole number of at least 1"),
        ({"accumulation_steps": 0}, "accumulation_steps: expected"),
        ({"logits_bytes": 1.5}, "logits_bytes: expected"),
    ],
)
def test_bad_settings_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        config(**changes)


def test_progress_counts_over_all_phases():
    told = config(num_sft_steps=6)
    assert told.overall("verbalization_teacher", 1) == (1, 30)
    assert told.overall("sft", 6) == (30, 30)
    assert config(intermediate="ce").overall("interaction", 16) == (20, 20)
    assert config(accumulation_steps=3).num_micro_batches == 60
