import pytest
import torch

from verbdistill import BatchError, response_states
from verbdistill.models.states import response_positions


def test_states_are_those_of_transformers(llava, batches):
    model, batch = llava(3), batches(0)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        states = response_states(model, batch, (1, 2, 3))
        outputs = model(**inputs, output_hidden_states=True)
    # Position p predicts label p + 1: the two answer tokens stand at 5 and 6.
    picked = [hidden[:, 4:6].reshape(-1, 32) for hidden in outputs.hidden_states]
    torch.testing.assert_close(states.layers[0], picked[1])
    torch.testing.assert_close(states.layers[1], picked[2])
    # transformers' last entry is after the final norm, ours is before it, as the other layers' are.
    norm = model.model.language_model.norm
    torch.testing.assert_close(norm(states.layers[2]), picked[3])
    torch.testing.assert_close(states.last, picked[3])
    torch.testing.assert_close(model.lm_head(states.last), outputs.logits[:, 4:6].reshape(-1, 12))
    assert torch.equal(states.labels, batch["input_ids"][:, 5:7].reshape(-1))
    assert not states.last.requires_grad


def test_hooks_are_gone_and_gradients_flow(llava, batches):
    model = llava(2)
    states = response_states(model, batches(0), (2,))
    states.layers[0].sum().backward()
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad is not None
    assert all(not layer._forward_hooks for layer in model.model.language_model.layers)
    wrong = {**batches(0), "pixel_values": torch.zeros(1, 3, 16, 16)}
    with pytest.raises(ValueError, match="do not match"):
        response_states(model, wrong, (1,))
    assert all(not layer._forward_hooks for layer in model.model.language_model.layers)


def test_packed_and_single_rows_agree(llava):
    """Two questions of one image in one row: each sees the image and itself."""
    model = llava(2)
    pixels = torch.randn(1, 3, 16, 16)
    prefix, segments = [3] * 4, [[4, 6, 7], [5, 4, 8, 9]]
    row = torch.tensor([prefix + segments[0] + segments[1]])
    mask = torch.zeros(1, 1, 11, 11, dtype=torch.bool)
    mask[..., :4] = True
    mask[..., 4:7, 4:7] = mask[..., 7:11, 7:11] = True
    packed = {
        "input_ids": row,
        "pixel_values": pixels,
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]]),
        "attention_mask": mask & torch.ones(11, 11, dtype=torch.bool).tril(),
        "labels": torch.tensor([[-100] * 5 + [6, 7] + [-100] * 2 + [8, 9]]),
    }
    found = response_states(model, packed, (1, 2))
    singles = []
    for segment, prompt in zip(segments, (5, 6), strict=True):
        ids = torch.tensor([prefix + segment])
        labels = ids.clone()
        labels[:, :prompt] = -100
        single = {"input_ids": ids, "pixel_values": pixels, "labels": labels, "attention_mask": torch.ones_like(ids)}
        singles.append(response_states(model, single, (1, 2)))
    for layer in range(2):
        torch.testing.assert_close(
            found.layers[layer], torch.cat([single.layers[layer] for single in singles]), atol=1e-5, rtol=1e-4
        )
    assert found.labels.tolist() == [6, 7, 8, 9]


def test_batches_without_response_tokens_are_refused(llava, batches):
    batch = batches(0)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(BatchError, match="at least one response token"):
        response_states(llava(2), batch, (1,))
    del batch["labels"]
    with pytest.raises(BatchError, match="expected labels"):
        response_states(llava(2), batch, (1,))
    # A label at the first position is predicted by nothing, and never wraps around.
    assert response_positions(torch.tensor([[5, -100, 7]])).tolist() == [[False, True, False]]
