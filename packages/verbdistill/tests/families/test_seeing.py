"""Every family speaks layer by layer and answers questions through its own processor."""

import pytest
import torch

from verbdistill.data.images import read_image
from verbdistill.models.states import response_states
from verbdistill.seeing.asking import encode, placeholders, prompt_text
from verbdistill.seeing.loading import load_model
from verbdistill.seeing.scoring import evaluate, questions_of
from verbdistill.seeing.speaking import verbalize
from verbdistill.verbalizers.verbalizers import Verbalizers
from vlmpress.data import Turn

LAYERS = (1, 2, 3)
QUESTION = "what is this"


def whole_forwards(model, processor, verbalizers, image, target, num_words):
    """Greedy ids of one target layer by a whole forward for each word, and the first word's probabilities."""
    images = [] if image is None else [image]
    prompt = encode(processor, [prompt_text(processor, [Turn(QUESTION, "")], len(images))], [images])
    ids, first = [], None
    for _ in range(num_words):
        # The last token stands for the one that is asked for; nobody reads it.
        given = torch.cat([prompt["input_ids"], torch.tensor([[*ids, 0]])], dim=1)
        inputs = {**prompt, "input_ids": given, "attention_mask": torch.ones_like(given)}
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in prompt:
                inputs[name] = torch.nn.functional.pad(prompt[name], (0, len(ids) + 1))
        labels = torch.full_like(given, -100)
        labels[0, -1] = 0
        inputs["labels"] = labels
        states = response_states(model, inputs, verbalizers.layers, whole=verbalizers.reads_whole)
        shares = verbalizers.head.logits(verbalizers.features(states)[target])[0].softmax(-1)
        first = shares if first is None else first
        ids.append(int(shares.clone().index_fill_(0, torch.tensor(placeholders(model)).long(), 0).argmax()))
    return ids, first


@pytest.mark.parametrize("kind", ["verb_ffn", "decoder"])
@torch.no_grad()
def test_layers_say_what_whole_forwards_say(family, pictures, kind):
    model, processor = family.model("teacher"), family.processor
    model.generation_config.eos_token_id = 1
    image = read_image(pictures[0]) if family.sees else None
    verbalizers = Verbalizers(model, LAYERS, kind, 1, torch.Generator().manual_seed(1))
    found = verbalize(model, processor, verbalizers, image, QUESTION, max_words=4, num_likeliest=10)
    tokenizer = getattr(processor, "tokenizer", processor)
    for target, speech in enumerate(found.layers):
        ids, first = whole_forwards(model, processor, verbalizers, image, target, 4)
        ids = ids[: ids.index(1)] if 1 in ids else ids
        assert speech.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        shares = torch.tensor([word.probability for word in speech.first_words])
        assert shares.allclose(first.topk(10).values, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 5])
def test_batches_of_questions_are_answered_as_one_by_one(family, mixture, num_beams):
    """Left padding, images of several sizes, several images and none in one go."""
    model, processor = family.model("student"), family.processor
    questions = questions_of(family.usable(mixture))
    at_once, alone = (
        evaluate(model, processor, questions, num_beams=num_beams, batch_size=size, max_new_tokens=3)
        for size in (len(questions), 1)
    )
    assert at_once == alone
    assert at_once.scores["all"].num_questions == len(questions)


def test_models_of_text_alone_are_loaded_too(text_family, tmp_path):
    text_family.model("student").save_pretrained(tmp_path)
    text_family.processor.save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path)
    speeches = verbalize(model, tokenizer, Verbalizers(model, (1, 2)), None, QUESTION, max_words=2)
    assert len(speeches.layers) == 2
