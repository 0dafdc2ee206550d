import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from verbdistill import DistillConfig, Verbalizers, interact
from verbdistill.data.alignment import AlignedPairBatches, shared_words
from verbdistill.teachers.local import LocalTeacher

WORDS = ["<pad>", "<s>", "</s>", "<image>", "where", "nw", "ne", "sw", "se", "up", "down", "<unk>"]
# The image mark stays where the model's configuration has it.
NEW_IDS = torch.tensor([5, 9, 0, 3, 11, 7, 1, 10, 2, 8, 6, 4])


def tokenizer(words):
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<pad>", "<s>"],
    )


def renumbered(words):
    return [words[int(number)] for number in NEW_IDS.argsort()]


def renumber_model(model):
    """The same student with its words under other ids."""
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight.copy_(weight[NEW_IDS.argsort()].clone())
    return model


def renumber_batch(batch):
    labels = batch["labels"]
    return {
        **batch,
        "input_ids": NEW_IDS[batch["input_ids"]],
        "labels": torch.where(labels == -100, labels, NEW_IDS[labels.clamp_min(0)]),
    }


def interaction(teacher, student, source, alignment, words=None):
    config = DistillConfig(
        num_verbalization_steps=0,
        num_interaction_steps=6,
        num_sft_steps=0,
        interaction_lr=3e-3,
        num_warmup_steps=1,
        lora_rank=None,
        alignment=alignment,
    )
    verbalizers = Verbalizers(student, (1, 2), generator=torch.Generator().manual_seed(5)).requires_grad_(False)
    return interact(teacher, student, verbalizers, source, config, words=words)


@pytest.fixture
def teacher(trained_teacher):
    return LocalTeacher(trained_teacher, Verbalizers(trained_teacher, (1, 2, 4), generator=torch.Generator()))


@pytest.mark.parametrize("alignment", ["shared_words", "sorted"])
def test_the_same_words_under_other_ids_train_the_same_student(teacher, llava, batches, alignment):
    tokenizers = tokenizer(WORDS), tokenizer(renumbered(WORDS))
    words = shared_words(*tokenizers) if alignment == "shared_words" else None
    if words is not None:
        assert words[0].tolist() == list(range(12))
        assert words[1].tolist() == NEW_IDS.tolist()
    plain, other = llava(2, seed=2), renumber_model(llava(2, seed=2))
    source = AlignedPairBatches(batches, lambda index: renumber_batch(batches(index)), *tokenizers)
    got = interaction(teacher, other, source, alignment, words)
    # Probabilities sorted have no numbers; of all words shared the KL is that of one vocabulary.
    expected = interaction(teacher, plain, batches, "none" if alignment == "shared_words" else alignment)
    assert got.matches == expected.matches
    for one, two in ((got.target_losses, expected.target_losses), (got.last_losses, expected.last_losses)):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(other.lm_head.weight[NEW_IDS], plain.lm_head.weight, rtol=0, atol=2e-3)


class Halved:
    """A student's batches in which the first word of every answer is two tokens."""

    def __init__(self, batches):
        self._batches = batches

    def __call__(self, index):
        batch = self._batches(index)
        # "nw" .. "se" are 6 .. 9: n or s, then ##w or ##e.
        ids, labels = batch["input_ids"], batch["labels"]
        first = ids[:, 5:6] - 6
        pieces = torch.cat([6 + first // 2, 8 + first % 2], dim=1)
        longer = torch.cat([ids[:, :5], pieces, ids[:, 6:] * 0 + 10], dim=1)
        return {
            **batch,
            "input_ids": longer,
            "labels": torch.cat([labels[:, :5], pieces, longer[:, 7:]], dim=1),
            "attention_mask": torch.ones_like(longer),
            "position_ids": torch.arange(longer.shape[1]).expand_as(longer),
        }


def test_a_student_whose_words_are_in_pieces_learns_at_the_tokens_both_begin(teacher, llava, batches):
    theirs = ["<pad>", "<s>", "</s>", "<image>", "where", "<unk>", "nw", "ne", "sw", "se"]
    ours = ["<pad>", "<s>", "</s>", "<image>", "where", "<unk>", "n", "s", "##w", "##e", "."]
    source = AlignedPairBatches(batches, Halved(batches), tokenizer(theirs), tokenizer(ours))
    pair = source(0)
    # Of the teacher's two words the first begins where the student's first piece does; the texts then differ.
    assert pair.teacher_rows.tolist()[:4] == [0, 1, 2, 3]
    assert pair.student_rows.tolist()[:4] == [0, 2, 3, 5]
    history = interaction(teacher, llava(2, seed=2), source, "sorted")
    assert all(loss == loss for row in history.target_losses for loss in row)
    assert history.last_losses[-1] < history.last_losses[0]
