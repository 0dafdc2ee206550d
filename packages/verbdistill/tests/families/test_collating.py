"""A micro-batch is what the family's processor makes of the same text and images."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from verbdistill import BatchError, VocabularyMismatchError
from verbdistill.data.collating import RecordBatches
from verbdistill.data.pairing import PairRecordBatches
from verbdistill.data.rows import RowMaker
from verbdistill.models.states import IGNORED
from vlmpress.data import Record, Turn, chat_messages


def batch_of(processor, records):
    maker = RowMaker(processor, None)
    return maker.batch([maker.row(record) for record in records])


def served(processor, records):
    """What the processor makes of whole conversations."""
    options = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
    if not hasattr(processor, "image_processor"):
        plain = [
            [{"role": one["role"], "content": one["content"][0]["text"]} for one in chat_messages(record.turns, 0)]
            for record in records
        ]
        return dict(processor([processor.apply_chat_template(each, tokenize=False) for each in plain], **options))
    texts = [
        processor.apply_chat_template(chat_messages(record.turns, len(record.images)), tokenize=False)
        for record in records
    ]
    images = [[Image.open(path) for path in record.images] for record in records if record.images]
    return dict(processor(text=texts, images=images or None, **options))


def test_batches_are_what_serving_makes(family, mixture):
    records = family.usable(mixture)
    for chosen in (records, records[::-1], *([record] for record in records)):
        batch, expected = batch_of(family.processor, chosen), served(family.processor, chosen)
        assert set(batch) - {"labels"} == set(expected) - {"token_type_ids"}
        for name, value in batch.items():
            if name != "labels":
                assert value.dtype == expected[name].dtype, name
                assert torch.equal(value, expected[name]), name


def test_only_answers_have_labels(family, mixture):
    records = family.usable(mixture)
    batch = batch_of(family.processor, records)
    tokenizer = getattr(family.processor, "tokenizer", family.processor)
    for ids, labels, record in zip(batch["input_ids"], batch["labels"], records, strict=True):
        wanted = " ".join(f"{turn.answer} <eos>" for turn in record.turns)
        assert tokenizer.decode(labels[labels != IGNORED]) == wanted
        assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])


def test_a_pair_shares_its_answers(family, mixture, smaller_images):
    """Tokens of images differ in number, response tokens do not."""
    records = family.usable(mixture)
    other = smaller_images if family.name == "llava" else family.processor
    pairs = PairRecordBatches(records, family.processor, other, batch_size=3, seed=1)
    alone = RecordBatches(records, family.processor, batch_size=3, seed=1)
    lengths = set()
    for index in (1, 0, 2):
        pair = pairs(index)
        assert pair.teacher_rows is None
        answers = [batch["labels"][batch["labels"] != IGNORED] for batch in (pair.teacher, pair.student)]
        assert torch.equal(*answers)
        for name, value in alone(index).items():
            assert torch.equal(value, pair.teacher[name]), name
        lengths.add(pair.teacher["input_ids"].shape[1] - pair.student["input_ids"].shape[1])
    assert (lengths == {0}) is (family.name != "llava")


def test_pairs_leave_out_the_same_records(llava_family, mixture, smaller_images):
    """What is too long for one model is for both."""
    records = [record for record in mixture if record.id in ("one", "two", "text")]
    pairs = PairRecordBatches(records, llava_family.processor, smaller_images, batch_size=6, seed=0, max_length=30)
    pair = pairs(0)
    assert pair.teacher["attention_mask"].sum(1).max() <= 30
    image = smaller_images.image_token_id
    for batch in (pair.teacher, pair.student):
        # The one with two images would have had room with the student alone.
        assert len(batch["pixel_values"]) == int((batch["input_ids"] == image).any(1).sum())


def test_pairs_that_do_not_fit_are_refused(text_family, mixture):
    records = text_family.usable(mixture)
    other = type(text_family.processor)(
        tokenizer_object=text_family.processor.backend_tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    other.chat_template = text_family.processor.chat_template.replace("<eos> ", "<eos> yes ").replace("<eos>", "not")
    with pytest.raises(BatchError, match=r"micro-batch 0, row 0: expected the same response tokens .* got 7 of"):
        PairRecordBatches(records, text_family.processor, other, batch_size=1, seed=0)(0)
    words = dict(text_family.processor.get_vocab())
    other.add_tokens(["purple"])
    with pytest.raises(VocabularyMismatchError, match="'purple'"):
        PairRecordBatches(records, text_family.processor, other, batch_size=1, seed=0)
    assert text_family.processor.get_vocab() == words


def test_pairs_of_other_tokenizers_are_aligned_when_asked_for(text_family, mixture):
    words = sorted(text_family.processor.get_vocab(), reverse=True)
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    other = type(text_family.processor)(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    other.chat_template = text_family.processor.chat_template
    records = [*text_family.usable(mixture), Record("more", (), (Turn("is this it", "yes"),))]
    pair = PairRecordBatches(records, text_family.processor, other, batch_size=2, seed=0, is_aligned=True)(0)
    assert torch.equal(pair.teacher_rows, pair.student_rows)
    assert len(pair.teacher_rows) == int((pair.teacher["labels"] != IGNORED).sum())
