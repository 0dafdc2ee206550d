import pytest
import torch
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments

from tokenreduce import PolicyError, ReductionPolicy, attach, calibrate, detach, features_of, wire
from vlmpress.artifact import ExtensionMissingError, reducer_attachment, write_policy

IMAGE, NUM_FULL = 3, 64


def test_trainer_trains_the_attached_model(llama, pixels, prompt, make_policy, tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            # Trainer knows the option by the signature; flat images would get 3 of the policy.
            factor = 1 + index % 2
            return {"input_ids": prompt(5, index), "pixel_values": pixels[index % 2], "image_factors": factor}

    def collate(rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        pixel_values = torch.stack([row["pixel_values"] for row in rows])
        labels = ids.masked_fill(ids == IMAGE, -100)
        factors = torch.tensor([row["image_factors"] for row in rows])
        return {"input_ids": ids, "pixel_values": pixel_values, "labels": labels, "image_factors": factors}

    keys = set(llama.state_dict())
    handle = attach(llama, make_policy(llama))
    before = llama.model.multi_modal_projector.linear_1.weight.clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=5,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    result = Trainer(model=llama, args=arguments, train_dataset=Rows(), data_collator=collate).train()
    assert 0 < result.training_loss < 10
    assert len(set(handle.last_num_visual_tokens)) > 1
    assert set(handle.last_factors) == {1, 2}
    assert not torch.equal(llama.model.multi_modal_projector.linear_1.weight, before)
    llama.save_pretrained(tmp_path / "saved")
    detach(llama)
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert set(again.state_dict()) == keys == set(llama.state_dict())
    ids = prompt(4)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids, pixels[:1]).logits, llama.eval()(ids, pixels[:1]).logits)


def test_the_entry_point_attaches_what_was_written(llama, pixels, prompt, tmp_path):
    with torch.no_grad():
        policy = calibrate([features_of(llama, part) for part in pixels.split(2)], 32)
    write_policy(tmp_path, wire.policy_to_proto(policy))
    attach_it = reducer_attachment(tmp_path)
    handle = attach_it(llama)
    assert handle.policy == policy
    llama(input_ids=torch.stack([prompt(4, seed) for seed in range(5)]), pixel_values=pixels)
    tokens = handle.last_num_visual_tokens
    assert sum(tokens) / len(tokens) == pytest.approx(policy.calibrated_mean_tokens)


def test_bad_policy_files(llama, tmp_path):
    assert reducer_attachment(tmp_path) is None
    message = wire.policy_to_proto(ReductionPolicy(tau=0.1))
    message.tau = -1
    write_policy(tmp_path, message)
    with pytest.raises(PolicyError, match="tau"):
        reducer_attachment(tmp_path)(llama)
    message.method = "unknown"
    write_policy(tmp_path, message)
    with pytest.raises(ExtensionMissingError):
        reducer_attachment(tmp_path)
