"""Asks a trained model the same questions under many compression settings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from stagetrain.assessing.attention import AttentionMeter, LayerAttention
from stagetrain.assessing.prompting import encode
from stagetrain.assessing.questions import Question
from stagetrain.assessing.scoring import Score, Tally
from stagetrain.attaching.attachment import attach
from stagetrain.compressors import compressor_named
from stagetrain.errors import ConfigError, SampleError
from stagetrain.families import Layout, family_of
from stagetrain.schedules.setting import CompressionSetting

_SPARE_TOKENS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingResult:
    """How a model answers under one setting.

    Attributes:
        setting: None: without compression.
        cr_percent: Equation 3 over all questions about images: their visual tokens in all layers without compression
            over those with it.
        score: Of all questions.
        by_type: Of each question type.
    """

    setting: CompressionSetting | None
    cr_percent: float
    score: Score
    by_type: dict[str, Score]

    @property
    def retained_percent(self) -> float:
        """Visual tokens left, of all layers together."""
        return 1e4 / self.cr_percent


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What a sweep found.

    Attributes:
        num_layers: Decoder layers.
        visual_tokens: Visual tokens of a question about images, mean.
        results: The first without compression, then one for each setting in its order.
        attention: Of the model without compression, one for each layer.
    """

    num_layers: int
    visual_tokens: float
    results: tuple[SettingResult, ...]
    attention: tuple[LayerAttention, ...]


@dataclass(slots=True)
class _Course:
    """One setting while the questions are asked."""

    setting: CompressionSetting | None
    tally: Tally = field(default_factory=Tally)
    tokens: int = 0


def sweep_settings(
    layers: Sequence[int], strides: Sequence[int], compressors: Sequence[str] = ("average",)
) -> tuple[CompressionSetting, ...]:
    """Every layer with every stride, compressor by compressor.

    Raises:
        ScheduleError: A layer or a stride is out of range.
        UnknownCompressorError: No such compressor.
        ConfigError: A compressor must be trained first.
    """
    for name in compressors:
        if compressor_named(name).is_learned:
            raise ConfigError(f"compressor: expected one that needs no training to assess a model by, got {name!r}")
    return tuple(
        CompressionSetting(layer=layer, stride=stride, compressor=name)
        for name in compressors
        for layer in layers
        for stride in strides
    )


def assess(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    settings: Sequence[CompressionSetting],
    *,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Assessment:
    """Greedy answers to all questions without compression and under each setting; attention without.

    Images are read and prompts made once for all settings; the model is left as it came.

    Args:
        model: Any model that compression can be attached to and is not; asked on its device, in evaluation mode.
        processor: Its processor, with a chat template.
        questions: At least one about an image.
        settings: Beside none.
        batch_size: Questions asked at once.
        max_new_tokens: Longest answer; by default that of the longest expected one, and a little more.
        on_progress: Called with questions asked and all questions.

    Raises:
        SampleError: No question is about an image.
        PoolingUnsupportedError: The model is of no known family.
        ScheduleError: A setting is not possible in this model.
        TemplateError: There is no chat template.
        ImageUnreadableError: Names the image file.
    """
    if not any(question.images for question in questions):
        raise SampleError("questions: expected at least one about an image, got none")
    sweep = _Sweep(model, processor, settings, max_new_tokens or longest_answer(processor, questions))
    was_training = model.training
    model.eval()
    try:
        done = 0
        for batch in batches(questions, batch_size):
            sweep.ask(batch)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(questions))
    finally:
        sweep.end()
        model.train(was_training)
    return sweep.result(sum(bool(question.images) for question in questions))


class _Sweep:
    """Asks one batch after the other under every setting; the first course is without compression."""

    def __init__(self, model: Any, processor: Any, settings: Sequence[CompressionSetting], max_new_tokens: int) -> None:
        self._model = model
        self._processor = processor
        self._max_new_tokens = max_new_tokens
        self._family = family_of(model)
        layers = self._family.decoder(model).layers
        self._num_layers = len(layers)
        self._meter = AttentionMeter(layers)
        self._courses = [_Course(None), *map(_Course, settings)]
        self._attachment = attach(model)
        try:
            for setting in settings:
                # One that is not possible must not wait for its turn to say so.
                self._attachment.set(setting)
        finally:
            self._attachment.clear()

    def ask(self, batch: Sequence[Question]) -> None:
        """Asks questions that all have images, or all have none."""
        encoded = encode(self._processor, batch)
        inputs = {name: value.to(self._model.device) for name, value in encoded.items()}
        layout = self._family.layout(self._model, inputs)
        for course in self._courses:
            with ExitStack() as stack:
                if course.setting is not None:
                    self._attachment.set(course.setting)
                    stack.callback(self._attachment.clear)
                elif batch[0].images:
                    stack.enter_context(self._meter.watching(layout.visual, inputs["attention_mask"].bool()))
                answers = self._answers(inputs)
            for question, answer in zip(batch, answers, strict=True):
                course.tally.add(question.type, question.answer, answer)
            course.tokens += tokens_left(layout, self._num_layers, course.setting)

    def end(self) -> None:
        """Leaves the model as it came."""
        self._attachment.detach()

    def result(self, num_with_images: int) -> Assessment:
        """What was found with so many questions about images."""
        plain = self._courses[0].tokens
        results = tuple(
            SettingResult(
                setting=course.setting,
                cr_percent=100 * plain / course.tokens,
                score=course.tally.overall,
                by_type=course.tally.by_type,
            )
            for course in self._courses
        )
        return Assessment(
            num_layers=self._num_layers,
            visual_tokens=plain / self._num_layers / num_with_images,
            results=results,
            attention=self._meter.result(),
        )

    @torch.inference_mode()
    def _answers(self, inputs: dict[str, torch.Tensor]) -> list[str]:
        """Greedy answers."""
        tokenizer = self._processor.tokenizer
        output = self._model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self._max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        return list(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def batches(questions: Sequence[Question], batch_size: int) -> Iterator[list[Question]]:
    """Questions about images, then those about none; processors take no mixture."""
    for about_images in (True, False):
        chosen = [question for question in questions if bool(question.images) == about_images]
        for start in range(0, len(chosen), batch_size):
            yield chosen[start : start + batch_size]


def tokens_left(layout: Layout, num_layers: int, setting: CompressionSetting | None) -> int:
    """Visual tokens of a batch in all layers together."""
    num_visual = int(layout.visual.sum())
    if setting is None:
        return num_layers * num_visual
    count = compressor_named(setting.compressor).count
    gone = sum(
        len(group.rows) * (group.columns.shape[1] - count(group.sides, setting.stride)) for group in layout.groups
    )
    return num_layers * num_visual - (num_layers - setting.layer) * gone


def longest_answer(processor: Any, questions: Sequence[Question]) -> int:
    """Tokens to leave for an answer: those of the longest expected one, its end, and a few that tell it from longer."""
    answers = sorted({question.answer for question in questions})
    return max(map(len, processor.tokenizer(answers, add_special_tokens=False)["input_ids"])) + 1 + _SPARE_TOKENS
