"""Makes training batches of conversations about images, for any model family with a Hugging Face processor."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch

from stagetrain.errors import ConfigError, SampleError, TemplateError
from stagetrain.samples.batches import SKIPPED, Batch
from stagetrain.samples.groups import Sample, draw_questions
from stagetrain.samples.packing import Conversation, Row, build_rows
from stagetrain.samples.placeholders import EncodedImage, ImageEncoder
from stagetrain.samples.positions import plain_positions, rotary_3d_positions
from stagetrain.samples.rendering import IGNORED, Rendered, Renderer, is_marked
from vlmpress.data import IMAGE_MARK, Record, Turn

TooLong = Literal["error", "skip", "drop_turns"]
ImagePosition = Literal["before", "random"]


class ConversationCollator:
    """Samples -> the batch every model of this project accepts.

    The text is the one serving makes: the chat template gives the whole conversation and, with the
    generation prompt, its beginning; only answers (with their end token) have labels. What an image
    takes in the sequence, and its tensors, come from the processor, as if it were called with the
    text and `images=[[image, ...], ...]`, one list a row. Packed, a row is the images' placeholders and
    what precedes them, then one segment for each record: segments see the prefix and themselves, and
    their positions all continue the prefix's. Not packed, and for records whose marks say where their
    images go, a row is one record. A record without image is a row of its own.

    Args:
        processor: Processor with tokenizer, image_processor, image_token and a chat template.
        max_questions_per_image: Records of an image drawn in an epoch.
        pack: Several records of an image in one row.
        seed: Of the draws.
        max_length: Most tokens of a conversation, images included; the tokenizer's `model_max_length` holds too.
        too_long: What becomes of a longer one; answers and images are never cut. "error": SampleError. "skip": the
            record is left out, and the batch says so under SKIPPED. "drop_turns": it loses its last turns, with
            the images that their marks place; if its first turn alone is too long it is left out as with "skip".
        image_position: "random" puts images that may stand anywhere before or behind the first question, drawn for
            each sample and epoch (equation 1 of the paper).
        pixel_cache_bytes: Memory for preprocessed images, float32; each worker process of a DataLoader has its own.

    Raises:
        ConfigError: A number is not positive, or packing is asked for with images at random positions: rows that
            share images need them first.
    """

    def __init__(
        self,
        processor: Any,
        max_questions_per_image: int = 6,
        pack: bool = True,
        seed: int = 0,
        *,
        max_length: int | None = None,
        too_long: TooLong = "error",
        image_position: ImagePosition = "before",
        pixel_cache_bytes: int = 256 << 20,
    ) -> None:
        _check_settings(max_questions_per_image, max_length, too_long, image_position, pack)
        self._processor = processor
        self._renderer = Renderer(processor)
        self._images = ImageEncoder(processor, pixel_cache_bytes)
        self._max_questions = max_questions_per_image
        self._pack = pack
        self._seed = seed
        limit = processor.tokenizer.model_max_length
        self._max_length = limit if max_length is None else min(limit, max_length)
        self._too_long = too_long
        self._image_position = image_position
        pad_token_id = processor.tokenizer.pad_token_id
        self._pad_token_id = int(pad_token_id if pad_token_id is not None else 0)
        self._has_types = bool(getattr(processor, "return_mm_token_type_ids", False))
        has_grids = "image_grid_thw" in processor.image_processor.model_input_names
        self._merge_size: int | None = processor.image_processor.merge_size if has_grids and self._has_types else None

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        """The records of a sample used in an epoch and where its images stand, pure in (seed, epoch, index)."""
        drawn = draw_questions(sample, self._max_questions, self._seed, epoch, index)
        last = self._image_position == "random" and random.Random(f"place {self._seed} {epoch} {index}").random() < 0.5
        return replace(drawn, images_last=last)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Batch of all records of `samples`.

        Returns:
            input_ids, labels [B, T] int64; position_ids [B, T] int64, [3, B, T] for models with M-RoPE;
            attention_mask bool [B, 1, T, T] where a row has several records, else int64 [B, T];
            mm_token_type_ids [B, T] where the processor makes them; the processor's tensors of all images,
            absent without images; SKIPPED: a line for each record left out, absent without one.

        Raises:
            SampleError: There is no record, or one with an empty answer or that is too long.
            TemplateError: The chat template cannot be trained on, or differs before the image.
            ImageUnreadableError: Names the image file.
        """
        rows: list[Row] = []
        skipped: list[str] = []
        for sample in samples:
            rows += self._rows(sample, skipped)
        if not rows:
            raise SampleError(skipped[0] if skipped else "batch: expected at least one record, got none")
        batch: Batch = build_rows(rows, self._pad_token_id)
        if self._has_types:
            types = self._processor.create_mm_token_type_ids(batch["input_ids"].tolist())
            batch["mm_token_type_ids"] = torch.tensor(types)
        batch |= self._images.merge([row.images for row in rows])
        return {**batch, SKIPPED: skipped} if skipped else batch

    def _rows(self, sample: Sample, skipped: list[str]) -> list[Row]:
        alone: list[Conversation] = []
        shared: list[Conversation] = []
        for record in sample.records:
            try:
                made = self._conversation(record, sample.images_last)
            except _TooLongError as error:
                if self._too_long == "error":
                    raise
                skipped.append(str(error))
                continue
            free = self._pack and bool(record.images) and not is_marked(record.turns)
            (shared if free else alone).append(made)
        rows = [Row((one,)) for one in alone]
        if shared:
            border = shared[0].border
            if len({one.tokens[: one.border] for one in shared}) > 1:
                where = ", ".join(map(str, sample.images))
                raise TemplateError(f"{where}: expected the same text before the image for every question")
            rows.append(Row(tuple(shared), border if len(shared) > 1 else 0))
        return rows

    def _conversation(self, record: Record, images_last: bool) -> Conversation:
        turns = record.turns
        while True:
            try:
                return self._fitting(record, turns, images_last)
            except _TooLongError:
                if self._too_long != "drop_turns" or len(turns) == 1:
                    raise
                turns = turns[:-1]
            except (SampleError, TemplateError) as error:
                raise type(error)(f"record {record.id}: {error}") from error

    def _fitting(self, record: Record, turns: tuple[Turn, ...], images_last: bool) -> Conversation:
        num_images = len(record.images)
        if is_marked(record.turns):
            num_images = sum(turn.question.count(IMAGE_MARK) for turn in turns)
        rendered = self._renderer.render(turns, num_images, images_last=images_last)
        images = self._images.encode(record.images[:num_images])
        length = len(rendered.tokens) + sum(len(image.tokens) - 1 for image in images)
        if length > self._max_length:
            raise _TooLongError(
                f"record {record.id}: question {turns[0].question!r}: expected at most {self._max_length} tokens,"
                f" got {length}"
            )
        return self._placed(rendered, images)

    def _placed(self, rendered: Rendered, images: tuple[EncodedImage, ...]) -> Conversation:
        """A rendered conversation with every mark replaced by its image's tokens."""
        tokens: list[int] = []
        labels: list[int] = []
        starts: list[int] = []
        done = 0
        for mark, image in zip(rendered.marks, images, strict=True):
            tokens += rendered.tokens[done:mark]
            labels += rendered.labels[done:mark]
            starts.append(len(tokens))
            tokens += image.tokens
            labels += [IGNORED] * len(image.tokens)
            done = mark + 1
        border = len(tokens)
        tokens += rendered.tokens[done:]
        labels += rendered.labels[done:]
        if self._merge_size is None:
            positions = plain_positions(len(tokens))
        else:
            grids = [image.tensors["image_grid_thw"][0] for image in images]
            positions = rotary_3d_positions(len(tokens), starts, grids, self._merge_size)
        return Conversation(tuple(tokens), tuple(labels), positions, images, border)


class _TooLongError(SampleError):
    """A conversation does not fit."""


def _check_settings(max_questions: int, max_length: int | None, too_long: str, image_position: str, pack: bool) -> None:
    if max_questions < 1 or (max_length is not None and max_length < 1):
        raise ConfigError(
            f"collator: expected positive max_questions_per_image and max_length, got {max_questions} and {max_length}"
        )
    for name, value, choices in (
        ("too_long", too_long, get_args(TooLong)),
        ("image_position", image_position, get_args(ImagePosition)),
    ):
        if value not in choices:
            raise ConfigError(f"collator: {name}: expected one of {', '.join(choices)}, got {value!r}")
    if pack and image_position == "random":
        raise ConfigError(
            "collator: image_position random: expected pack=False, for packed rows share what comes first"
        )
