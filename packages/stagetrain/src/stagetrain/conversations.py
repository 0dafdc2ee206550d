"""Makes training batches of conversations about images."""

from collections.abc import Sequence
from typing import Any

import torch

from stagetrain.errors import ConfigError, SampleError, TemplateError
from stagetrain.groups import Batch, Sample, draw_questions
from stagetrain.images import PixelCache
from stagetrain.packing import Row, build_rows
from stagetrain.rendering import Renderer


class ConversationCollator:
    """Samples -> the batch every model of this project accepts.

    The text is the one serving makes: the chat template gives the whole conversation and, with the
    generation prompt, its beginning; only answers (with their end token) have labels. Packed, a row
    is an image's placeholders and what precedes them, then one segment for each record: segments see
    the prefix and themselves, and their positions all continue the prefix's. Not packed, a row is one
    record. A record without image is a row of its own.

    Args:
        processor: Processor with tokenizer, image_processor, image_token_id and a chat template.
        num_image_tokens: Placeholders an image takes in the sequence.
        max_questions_per_image: Records of an image drawn in an epoch.
        pack: Several records of an image in one row.
        seed: Of the draw.
        pixel_cache_bytes: Memory for preprocessed images (float16).

    Raises:
        ConfigError: A number is not positive.
    """

    def __init__(
        self,
        processor: Any,
        num_image_tokens: int,
        max_questions_per_image: int = 6,
        pack: bool = True,
        seed: int = 0,
        *,
        pixel_cache_bytes: int = 256 << 20,
    ) -> None:
        if num_image_tokens < 1 or max_questions_per_image < 1:
            raise ConfigError(
                "collator: expected positive num_image_tokens and max_questions_per_image, got"
                f" {num_image_tokens} and {max_questions_per_image}"
            )
        self._renderer = Renderer(processor, num_image_tokens)
        self._pixels = PixelCache(processor.image_processor, pixel_cache_bytes)
        self._max_questions = max_questions_per_image
        self._pack = pack
        self._seed = seed
        tokenizer = processor.tokenizer
        self._pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        """The records of a sample used in an epoch, a pure function of (seed, epoch, index)."""
        return draw_questions(sample, self._max_questions, self._seed, epoch, index)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Batch of all records of `samples`.

        Returns:
            input_ids, position_ids, labels [B, T] int64; attention_mask bool [B, 1, T, T] (packed)
            or int64 [B, T]; pixel_values [num_images, 3, H, W] float32, absent without images.

        Raises:
            SampleError: There is no record, or one with an empty or cut answer.
            TemplateError: The chat template cannot be trained on, or differs before the image.
            ImageUnreadableError: Names the image file.
        """
        rows: list[Row] = []
        pixels: list[torch.Tensor] = []
        for sample in samples:
            new = self._rows(sample)
            rows += new
            if sample.image is not None:
                pixels += [self._pixels.get(sample.image)] * len(new)
        if not rows:
            raise SampleError("batch: expected at least one record, got none")
        batch = build_rows(rows, self._pad_token_id, self._pack)
        if pixels:
            batch["pixel_values"] = torch.stack(pixels)
        return batch

    def _rows(self, sample: Sample) -> list[Row]:
        rendered = [self._renderer.render(record) for record in sample.records]
        if sample.image is None or not self._pack:
            return [Row(one.prefix, (one,)) for one in rendered]
        prefixes = {one.prefix for one in rendered}
        if len(prefixes) > 1:
            raise TemplateError(f"{sample.image}: expected the same text before the image for every question")
        return [Row(prefix, tuple(rendered)) for prefix in prefixes]
