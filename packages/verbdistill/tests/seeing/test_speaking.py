import pytest
import torch
from PIL import Image
from torch import Tensor

from verbdistill.errors import BatchError
from verbdistill.models.states import response_states
from verbdistill.seeing.asking import encode, prompt_text
from verbdistill.seeing.speaking import verbalize
from verbdistill.verbalizers.verbalizers import Verbalizers
from vlmpress.data import Turn

LAYERS = (1, 2, 4)
KINDS = ("verb_ffn", "mlp", "decoder")


@pytest.fixture
def model(llava):
    return llava(4, seed=3)


@pytest.fixture
def image():
    return Image.new("RGB", (16, 16), (250, 20, 130))


def verbalizers_of(model, kind="verb_ffn"):
    return Verbalizers(model, LAYERS, kind, 1, torch.Generator().manual_seed(3))


def slow_greedy(model, processor, verbalizers, image, layer: int, num: int) -> tuple[list[int], Tensor]:
    """A whole forward for each word, one layer at a time: token ids, and the first word's probabilities."""
    text = prompt_text(processor, [Turn("where", "")], 1)
    batch = encode(processor, [text], [[image]])
    ids, shares = [], []
    for _ in range(num):
        # A token that nobody reads stands behind; what comes before it is what is asked for.
        given = torch.cat([batch["input_ids"], torch.tensor([[*ids, 0]])], dim=1)
        labels = torch.full_like(given, -100)
        labels[0, -1] = 0
        inputs = {"input_ids": given, "attention_mask": torch.ones_like(given), "pixel_values": batch["pixel_values"]}
        states = response_states(model, {**inputs, "labels": labels}, verbalizers.layers, whole=verbalizers.reads_whole)
        feature = verbalizers.features(states)[verbalizers.layers.index(layer)]
        shares.append(verbalizers.head.logits(feature)[0].softmax(-1))
        sayable = shares[-1].clone()
        sayable[model.config.image_token_id] = 0
        ids.append(int(sayable.argmax()))
    return ids, shares[0]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_layer_continues_its_own_text(model, processor, image, kind):
    """The same as asking each layer alone with a whole forward for every word."""
    processor, verbalizers = processor(), verbalizers_of(model, kind)
    model.generation_config.eos_token_id = None
    found = verbalize(model, processor, verbalizers, image, "where", max_words=5, num_likeliest=3)
    assert [each.layer for each in found.layers] == list(LAYERS)
    for each in found.layers:
        ids, shares = slow_greedy(model, processor, verbalizers, image, each.layer, 5)
        # Generation skips special tokens in text alone.
        assert each.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        likeliest = shares.topk(3)
        assert [word.word for word in each.first_words] == processor.tokenizer.batch_decode(likeliest.indices[:, None])
        assert torch.tensor([word.probability for word in each.first_words]).allclose(likeliest.values, atol=1e-5)


def test_the_last_row_is_the_models_own_answer(model, processor, image):
    processor = processor()
    found = verbalize(model, processor, verbalizers_of(model), image, "where", max_words=4)
    inputs = encode(processor, [prompt_text(processor, [Turn("where", "")], 1)], [[image]])
    model.generation_config.pad_token_id = 0
    output = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    said = output[0, inputs["input_ids"].shape[1] :]
    assert found.answer.layer is None
    assert found.answer.text == processor.tokenizer.decode(said, skip_special_tokens=True).strip()


def test_texts_end_at_the_end_token_and_the_model_is_left_as_it_came(model, processor, image):
    processor, verbalizers = processor(), verbalizers_of(model)
    model.train()
    free = verbalize(model, processor, verbalizers, image, "where", max_words=5)
    assert model.training
    assert not any(block._forward_hooks for block in model.model.language_model.layers)
    words = [each.text.split() for each in free.layers]
    chosen = next(row[1] for row in words if row[1:2] and row[1] != row[0])
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(chosen)
    ended = verbalize(model, processor, verbalizers, image, "where", max_words=5)
    for row, each in zip(words, ended.layers, strict=True):
        assert each.text.split() == (row[: row.index(chosen)] if chosen in row else row)


def test_a_models_own_penalties_do_not_bend_its_answer(model, processor, image):
    processor, verbalizers = processor(), verbalizers_of(model)
    plain = verbalize(model, processor, verbalizers, image, "where", max_words=5)
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=9.0, no_repeat_ngram_size=1)
    assert verbalize(model, processor, verbalizers, image, "where", max_words=5) == plain


def test_questions_without_an_image_and_with_a_mark(model, processor, image):
    processor, verbalizers = processor(), verbalizers_of(model)
    plain = verbalize(model, processor, verbalizers, image, "where", max_words=2)
    assert verbalize(model, processor, verbalizers, image, "<image>where", max_words=2) == plain
    assert verbalize(model, processor, verbalizers, None, "where", max_words=2) != plain


@pytest.mark.parametrize(
    ("question", "has_image", "max_words"),
    [("", True, 4), ("  ", True, 4), ("<image> <image> a", True, 4), ("<image> a", False, 4), ("where", True, 0)],
)
def test_bad_questions_are_refused(model, processor, image, question, has_image, max_words):
    with pytest.raises(BatchError):
        verbalize(
            model, processor(), verbalizers_of(model), image if has_image else None, question, max_words=max_words
        )


def test_a_missing_chat_template_is_named(model, processor, image):
    bare = processor()
    bare.chat_template = None
    with pytest.raises(BatchError, match="chat template"):
        verbalize(model, bare, verbalizers_of(model), image, "where")
    bare.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ ' ?' }}{% endfor %}"
    assert verbalize(model, bare, verbalizers_of(model), image, "where").layers


def test_a_layer_never_says_a_placeholder(model, processor, image):
    """Else the next forward would look for its image."""
    likeliest = set()
    for factor in (50, -1):
        # The image token's logits are the largest or the smallest of all, then the other way round.
        with torch.no_grad():
            model.lm_head.weight[model.config.image_token_id] *= factor
        found = verbalize(model, processor(), verbalizers_of(model, "decoder"), image, "where", num_likeliest=12)
        likeliest |= {each.first_words[0].word for each in found.layers}
    assert "<image>" in likeliest
