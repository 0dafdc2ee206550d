import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tokenreduce import ReductionPolicy, attach
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.training.callback import ReductionCallback
from tokenreduce.training.schedules import ConstantSchedule, LearningRateSchedule, PiecewiseSchedule

RANDOM = RandomPooling(seed=9)


def draws(step, stream=0, num_views=5):
    return tuple(RANDOM.keyed(step=step, stream=stream).draw(view) for view in range(num_views))


def random_run(model, make_trainer, **options):
    handle = attach(model, FixedPooling(factor=3))
    callback = ReductionCallback(handle, ConstantSchedule(reducer=RANDOM))
    return make_trainer(model, handle, [callback], **options)


def test_every_step_draws_by_its_own_key(llama, make_trainer):
    trainer = random_run(llama, make_trainer)
    trainer.train()
    assert trainer.trained == [(step, draws(step)) for step in range(6)]
    assert len({factors for _, factors in trainer.trained}) > 1


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_resumed_run_goes_on_as_the_whole_one(micro_batches, llama, make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": micro_batches}
    first = random_run(llama, make_trainer, **options)
    first.train()
    # Trainer itself does not find a Llava's weights in its own checkpoint (transformers issue 43701).
    resumed = LlavaForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-3")
    second = random_run(resumed, make_trainer, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert second.trained == first.trained[3 * micro_batches :]
    for (name, weight), again in zip(llama.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(weight, again), name


def test_micro_batches_of_one_step_draw_differently(llama, make_trainer):
    trainer = random_run(llama, make_trainer, gradient_accumulation_steps=2, max_steps=3)
    trainer.train()
    assert trainer.trained == [(step, draws(step, stream)) for step in range(3) for stream in range(2)]


def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(llama, make_trainer, examples):
    # 3 batches an epoch: steps of 2 and of 1 micro-batch.
    trainer = random_run(
        llama, make_trainer, train_dataset=examples + examples[:5], gradient_accumulation_steps=2, max_steps=4
    )
    trainer.train()
    expected = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (3, 0)]
    assert trainer.trained == [(step, draws(step, stream)) for step, stream in expected]


def test_evaluations_use_their_own_reducer(llama, make_trainer):
    handle = attach(llama, DfmrReducer(ReductionPolicy(tau=0.3)))
    evaluation = FixedPooling(factor=2)
    callback = ReductionCallback(handle, ConstantSchedule(reducer=RANDOM), evaluation=evaluation)
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 5, "eval_on_start": True}
    trainer = make_trainer(llama, handle, [callback], **options)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert trainer.evaluated == [(2,) * 5] * 6
    assert trainer.trained == [(step, draws(step)) for step in range(6)]
    assert handle.reducer is evaluation


def test_evaluations_default_to_what_was_attached(llama, make_trainer):
    trainer = random_run(llama, make_trainer, max_steps=1)
    attached = trainer.handle.reducer
    trainer.train()
    trainer.evaluate()
    assert trainer.handle.reducer is attached
    assert {factor for factors in trainer.evaluated for factor in factors} == {3}


def test_tau_follows_the_learning_rate_of_each_step(llama, make_trainer):
    class Noting:
        def __init__(self, schedule):
            self.schedule, self.seen = schedule, []

        def at(self, step, learning_rate):
            reducer = self.schedule.at(step, learning_rate)
            self.seen.append((step, learning_rate, reducer))
            return reducer

    policy = ReductionPolicy(tau=1.2)
    handle = attach(llama, policy)
    noting = Noting(LearningRateSchedule(policy=policy, max_learning_rate=1e-3))
    options = {"max_steps": 8, "warmup_steps": 4, "lr_scheduler_type": "linear"}
    trainer = make_trainer(llama, handle, [ReductionCallback(handle, noting)], **options)
    trainer.train()
    rates = [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    assert [step for step, _, _ in noting.seen] == list(range(8))
    assert [rate for _, rate, _ in noting.seen] == pytest.approx([1e-3 * rate for rate in rates])
    assert noting.seen[0][2] == FixedPooling(factor=1)
    taus = [reducer.policy.tau for _, _, reducer in noting.seen[1:]]
    assert taus == pytest.approx([1.2 * rate for rate in rates[1:]])
    assert trainer.trained[0] == (0, (1,) * 5)
    assert max(trainer.trained[4][1]) == 3


def test_pieces_and_a_selection(llama, make_trainer):
    handle = attach(llama, FixedPooling(factor=1))
    schedule = PiecewiseSchedule(
        num_steps=4,
        starts=(0.0, 0.5),
        pieces=[ConstantSchedule(reducer=each) for each in (RandomDrop(num_tokens=10), FixedPooling(factor=2))],
    )
    trainer = make_trainer(llama, handle, [ReductionCallback(handle, schedule)], max_steps=4)
    trainer.train()
    assert trainer.trained == [(0, (None,) * 5), (1, (None,) * 5), (2, (2,) * 5), (3, (2,) * 5)]
