"""States, heads and parts of every family are those of transformers."""

import pytest
import torch

from verbdistill import BatchError, head_of, response_states
from verbdistill.data.collating import RecordBatches
from verbdistill.data.rows import RowMaker
from verbdistill.models.parts import decoder_layers, final_norm, projector, vision_part, vocab_size
from verbdistill.models.states import IGNORED
from vlmpress.data import Record


@pytest.fixture
def batch(family, mixture):
    records = family.usable(mixture)
    return RecordBatches(records, family.processor, batch_size=len(records), seed=0)(0)


def plain(model, batch, **options):
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}, **options)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_states_are_those_of_transformers(family, batch, role):
    model = family.model(role)
    depth = len(decoder_layers(model))
    with torch.no_grad():
        states = response_states(model, batch, range(1, depth + 1))
    outputs = plain(model, batch, output_hidden_states=True)
    predicting = torch.zeros_like(batch["labels"], dtype=torch.bool)
    predicting[:, :-1] = batch["labels"][:, 1:] != IGNORED
    for layer in range(1, depth):
        torch.testing.assert_close(states.layers[layer - 1], outputs.hidden_states[layer][predicting])
    # transformers' last entry is after the final norm, ours is before it, as the other layers' are.
    torch.testing.assert_close(final_norm(model)(states.layers[-1]), outputs.hidden_states[-1][predicting])
    torch.testing.assert_close(states.last, outputs.hidden_states[-1][predicting])
    torch.testing.assert_close(head_of(model).logits(states.last), outputs.logits[predicting])
    assert torch.equal(states.labels, batch["labels"][batch["labels"] != IGNORED])
    assert vocab_size(model) == {"teacher": 40, "student": 34}[role]
    assert states.layers[0].shape == (len(states.labels), 32)


def test_whole_states_and_arguments_make_the_next_layer(family, batch):
    model = family.model("teacher")
    layers = decoder_layers(model)
    with torch.no_grad():
        states = response_states(model, batch, (1, 2, 3), whole=True)
        picked = response_states(model, batch, (1, 2, 3))
        assert states.layers[0].shape == (*batch["labels"].shape, 32)
        for place in (0, 1):
            output = layers[place + 1](states.layers[place], **states.arguments[place + 1])
            torch.testing.assert_close(output, states.layers[place + 1])
    for whole, tokens in zip(states.layers, picked.layers, strict=True):
        assert torch.equal(whole[states.positions], tokens)
    assert all("past_key_values" not in given and "attention_mask" in given for given in states.arguments)


def test_states_of_rows_alone_are_those_of_the_batch(family, mixture):
    """Padding, and images of other rows, change nothing."""
    model, records = family.model("student"), family.usable(mixture)
    wanted = []
    with torch.no_grad():
        for record in records:
            wanted.append(response_states(model, of(family, [record]), (1, 2)))
        found = response_states(model, of(family, records), (1, 2))
    assert torch.equal(found.labels, torch.cat([states.labels for states in wanted]))
    for layer in range(2):
        torch.testing.assert_close(
            found.layers[layer], torch.cat([states.layers[layer] for states in wanted]), atol=1e-4, rtol=1e-4
        )


def of(family, records: list[Record]):
    maker = RowMaker(family.processor, None)
    return maker.batch([maker.row(record) for record in records])


def test_checkpointed_layers_give_the_same_gradients(family, batch):
    gradients = []
    for enabled in (False, True):
        model = family.model("student").train()
        if enabled:
            model.activation_checkpointing_enable({"use_reentrant": False})
        states = response_states(model, batch, (1, 2))
        sum(part.square().mean() for part in (*states.layers, states.last)).backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name])


def test_a_row_without_a_response_is_named(family, batch):
    last = len(batch["labels"]) - 1
    batch["labels"][last] = IGNORED
    with pytest.raises(BatchError, match=f"labels: row {last}: expected at least one response token"):
        response_states(family.model("student"), batch, (1,))


def test_vision_parts(family):
    model = family.model("student")
    assert (vision_part(model) is None) is (not family.sees)
    assert (projector(model) is None) is (not family.sees)
