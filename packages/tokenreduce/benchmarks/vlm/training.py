"""Rows of one image with its questions, and the training of projector and language model on them.

Shape suffixes: B images, V visual tokens, Q questions of an image, W words of a question, T columns, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaForConditionalGeneration
from vlm.data import Split
from vlm.model import BOS, ID_OF

IGNORED = -100
_LR, _WARMUP, _DECAY, _BATCH = 3e-3, 50, 0.25, 16
# What an image becomes in a step: rows of the split and a generator -> one [V, D] an image.
Policy = Callable[[Tensor, torch.Generator], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Questions:
    """words int64 [N, Q, W], answers int64 [N, Q] (IGNORED where an image has fewer than Q), is_colour bool [N, Q]."""

    words: Tensor
    answers: Tensor
    is_colour: Tensor


def as_questions(split: Split) -> Questions:
    most = max(len(row) for row in split.questions)
    words = torch.zeros(len(split.questions), most, 4, dtype=torch.long)
    answers = torch.full((len(split.questions), most), IGNORED)
    is_colour = torch.zeros(len(split.questions), most, dtype=torch.bool)
    for image, row in enumerate(split.questions):
        for index, question in enumerate(row):
            words[image, index] = torch.tensor([ID_OF[word] for word in question.words])
            answers[image, index] = ID_OF[question.answer]
            is_colour[image, index] = question.kind == "colour"
    return Questions(words=words, answers=answers, is_colour=is_colour)


def answer_logits(model: LlavaForConditionalGeneration, visual: Sequence[Tensor], words_BQW: Tensor) -> Tensor:  # noqa: N803
    """Logits after every question's last word, all questions of an image in one row; [B, Q, vocabulary].

    A row is BOS, its visual tokens, then its questions; a question sees what stands before the questions, and
    itself; its positions follow the image's own number of visual tokens. `attach` gives a row the same meaning.
    """
    counts_B = torch.tensor([len(tokens) for tokens in visual])  # noqa: N806
    num_images, num_questions, num_words = words_BQW.shape
    projected = model.model.multi_modal_projector(torch.cat(list(visual))).split(counts_B.tolist())
    image_BVD = pad_sequence(list(projected), batch_first=True)  # noqa: N806
    num_visual = image_BVD.shape[1]
    embed = model.get_input_embeddings()
    text = embed(words_BQW).flatten(1, 2)
    bos = embed(torch.full((num_images, 1), BOS))
    places_V = torch.arange(num_visual)  # noqa: N806
    prefix_BP = torch.cat([torch.ones(num_images, 1, dtype=torch.bool), places_V < counts_B[:, None]], 1)  # noqa: N806
    words_in_order = torch.arange(num_words).repeat(num_questions)
    positions = torch.cat(
        [torch.arange(num_visual + 1).expand(num_images, -1), counts_B[:, None] + 1 + words_in_order], 1
    )
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([bos, image_BVD, text], 1),
        attention_mask=_mask(prefix_BP, num_questions, num_words),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    last = hidden[:, num_visual + num_words :: num_words]
    return model.lm_head(last)


def train_language(
    model: LlavaForConditionalGeneration, policy: Policy, questions: Questions, seed: int, num_steps: int
) -> list[float]:
    """Trains all but the tower, on the same images in the same order whatever the policy; mean loss per tenth."""
    order = torch.Generator().manual_seed(seed)
    draws = torch.Generator().manual_seed(10_000 + seed)
    parameters = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, num_steps))
    model.train()
    losses = []
    for _ in range(num_steps):
        rows = torch.randint(len(questions.words), (_BATCH,), generator=order)
        logits = answer_logits(model, policy(rows, draws), questions.words[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), questions.answers[rows].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return [float(part.mean()) for part in torch.tensor(losses).chunk(10)]


def _rate(step: int, num_steps: int) -> float:
    """Warm-up, plateau, linear decay: the binding plateau must be left before the rate falls."""
    return min((step + 1) / _WARMUP, 1.0, (num_steps - step) / (_DECAY * num_steps))


def _mask(prefix_BP: Tensor, num_questions: int, num_words: int) -> Tensor:  # noqa: N803
    """True where a column may attend; bool [B, 1, T, T]. Padding attends only to itself."""
    num_prefix, num_text = prefix_BP.shape[1], num_questions * num_words
    total = num_prefix + num_text
    segment = torch.cat([torch.full((num_prefix,), -1), torch.arange(num_questions).repeat_interleave(num_words)])
    visible = (segment[None] == -1) | (segment[:, None] == segment[None])
    visible &= torch.ones(total, total, dtype=torch.bool).tril()
    present = F.pad(prefix_BP, (0, num_text), value=True)
    mask = visible & present[:, None]
    return (mask | torch.eye(total, dtype=torch.bool))[:, None]
