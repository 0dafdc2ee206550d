"""What each target layer of a model says (VLsI, Figure 3).

L target layers, h hidden size, V vocabulary size.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from verbdistill.data.rendering import tokenizer_of
from verbdistill.errors import BatchError
from verbdistill.models.parts import decoder_layers
from verbdistill.models.states import ResponseStates
from verbdistill.seeing.asking import encode, end_tokens, placeholders, prompt_text, search
from verbdistill.verbalizers.verbalizers import Verbalizers
from vlmpress.data import IMAGE_MARK, Turn


@dataclass(frozen=True, slots=True)
class WordProbability:
    """A word of the vocabulary and how likely it is to come first."""

    word: str
    probability: float


@dataclass(frozen=True, slots=True)
class LayerSpeech:
    """What one layer says when it alone chooses every word, greedily.

    Attributes:
        layer: 1-based decoder layer; None: the model itself, through no verbalizer.
        text: Without special tokens and placeholders of images.
        first_words: The likeliest first words, the likeliest first.
    """

    layer: int | None
    text: str
    first_words: tuple[WordProbability, ...]


@dataclass(frozen=True, slots=True)
class Speeches:
    """Every target layer's, ascending, and the model's own answer."""

    layers: tuple[LayerSpeech, ...]
    answer: LayerSpeech


@torch.inference_mode()
def verbalize(
    model: Any,
    processor: Any,
    verbalizers: Verbalizers,
    image: Image | None,
    question: str,
    *,
    max_words: int = 16,
    num_likeliest: int = 5,
) -> Speeches:
    """Asks every target layer and the model itself; each continues its own text, not the model's.

    All run as rows of one batch through the model's own `generate`: row i of the prompt is continued with what
    target layer i says, so its states are those of its own words. Source: VLsI, Section 4.2.

    Args:
        model: Asked on its device, in evaluation mode, and left as it came.
        processor: Its processor (a tokenizer will do where there is no image), with a chat template.
        verbalizers: Of this model, or of the one it was trained from.
        image: What the question is about; None: about none.
        question: Text; a mark <image> says where the image goes, else it comes first.
        max_words: Tokens of a text, at most.
        num_likeliest: First words to tell, at most.

    Raises:
        BatchError: The question is empty or marks another number of images, or there is no chat template.
    """
    marks = question.count(IMAGE_MARK)
    if not question.strip() or marks not in (0, int(image is not None)):
        raise BatchError(f"question: expected text with no more marks {IMAGE_MARK} than images, got {question!r}")
    if max_words < 1 or num_likeliest < 1:
        raise BatchError(f"max_words, num_likeliest: expected at least 1, got {max_words} and {num_likeliest}")
    turn = Turn(question, "")
    rows = len(verbalizers.layers) + 1
    images = [] if image is None else [image.convert("RGB")]
    text = prompt_text(processor, [turn], len(images))
    inputs = {name: value.to(model.device) for name, value in encode(processor, [text] * rows, [images] * rows).items()}
    speakers = _Speakers(verbalizers, torch.tensor(placeholders(model), dtype=torch.long, device=model.device))
    was_training = model.training
    model.eval()
    try:
        with speakers.listening(model):
            output = model.generate(
                **inputs,
                # Bodies that look at other tokens need every layer's states of all of them, at every word.
                generation_config=search(model, processor, max_words, use_cache=not verbalizers.reads_whole),
                logits_processor=LogitsProcessorList([speakers]),
            )
    finally:
        model.train(was_training)
    said = output[:, inputs["input_ids"].shape[1] :].tolist()
    likeliest = speakers.first.softmax(-1).topk(min(num_likeliest, speakers.first.shape[-1]))
    tokenizer = tokenizer_of(processor)
    ends = set(end_tokens(model, processor))
    speeches = [
        LayerSpeech(layer, _text(tokenizer, ids, ends), _words(tokenizer, words, shares))
        for layer, ids, words, shares in zip(
            (*verbalizers.layers, None), said, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
        )
    ]
    return Speeches(tuple(speeches[:-1]), speeches[-1])


class _Speakers(LogitsProcessor):
    """Gives row i of a batch the logits of target layer i at the newest position; the last row keeps the model's."""

    def __init__(self, verbalizers: Verbalizers, unsayable: Tensor) -> None:
        self._verbalizers = verbalizers
        self._unsayable = unsayable
        self._states: dict[int, Tensor] = {}
        self._arguments: dict[int, Mapping[str, Any]] = {}
        self.first = torch.empty(0)

    @contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Keeps what the target layers hand on."""
        blocks = decoder_layers(model)
        hooks = [
            blocks[layer - 1].register_forward_hook(
                lambda _module, _inputs, given, output, layer=layer: self._keep(layer, given, output), with_kwargs=True
            )
            for layer in self._verbalizers.layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, layer: int, given: Mapping[str, Any], output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self._states[layer] = states if self._verbalizers.reads_whole else states[:, -1]
        self._arguments[layer] = given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [L + 1, V]."""
        features = self._verbalizers.features(self._response_states())
        own = torch.stack([part[row] for row, part in enumerate(features)])
        scores = torch.cat([self._verbalizers.head.logits(own).to(scores.dtype), scores[-1:]])
        if not len(self.first):
            self.first = scores.float()
        # A placeholder that a layer says would be taken for one more image.
        return scores.index_fill(1, self._unsayable, -torch.inf)

    def _response_states(self) -> ResponseStates:
        """The newest tokens of all rows as response tokens."""
        layers = self._verbalizers.layers
        states = tuple(self._states[layer] for layer in layers)
        shape = states[0].shape[:2] if self._verbalizers.reads_whole else (len(states[0]), 1)
        newest = torch.zeros(shape, dtype=torch.bool, device=states[0].device)
        newest[:, -1] = True
        return ResponseStates(
            layers=states,
            last=states[-1],  # read by nobody here, as the labels are
            labels=newest[:, -1].long(),
            positions=newest,
            arguments=tuple(self._arguments[layer] for layer in layers) if self._verbalizers.reads_whole else (),
        )


def _text(tokenizer: Any, ids: list[int], ends: set[int]) -> str:
    """Up to the first token that ends an answer: what follows pads the row."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(ids[:length], skip_special_tokens=True)).strip()


def _words(tokenizer: Any, ids: list[int], shares: list[float]) -> tuple[WordProbability, ...]:
    return tuple(
        WordProbability(str(tokenizer.decode([token])), share) for token, share in zip(ids, shares, strict=True)
    )
