"""One image at several factors in an epoch: the augmentation of LLaVA-Zip, section 5."""

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import Dataset

from tokenreduce.errors import PlaceholderError, PolicyError
from tokenreduce.reducers.views import check_count

IMAGE_FACTORS = "image_factors"


def count_images(example: Mapping[str, Any]) -> int:
    """Images of an example: rows of `image_sizes` or `image_grid_thw`, else images in `pixel_values`, else none.

    `pixel_values` is one image [C, height, width], several [N, C, height, width], or a list of images.

    Raises:
        PlaceholderError: One of them has another shape.
    """
    for name, rank in (("image_sizes", 2), ("image_grid_thw", 2), ("pixel_values", 4)):
        value = example.get(name)
        if value is None:
            continue
        if name == "pixel_values" and isinstance(value, (list, tuple)):
            return len(value)
        shape = list(torch.as_tensor(value).shape)
        if len(shape) not in (rank - 1, rank):
            raise PlaceholderError(f"{name}: expected a tensor of rank {rank - 1} or {rank}, got shape {shape}")
        return shape[0] if len(shape) == rank else 1
    return 0


class AtEveryFactor(Dataset[dict[str, Any]]):
    """Every example of a dataset once for each factor, with `image_factors` for an attached model.

    Example i at factors[k] is item k * len(dataset) + i; a sampler's seed decides the order of an epoch. All images
    of an example get the same factor; an example without images comes as often as the others.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        factors: Sequence[int],
        count: Callable[[Mapping[str, Any]], int] = count_images,
    ) -> None:
        """Wraps a dataset of mappings that has a length.

        Args:
            dataset: It is left as it is, and so are its examples.
            factors: Pooling factors, each at least 1, none twice; 0 leaves the choice to the model's reducer.
            count: How many images an example has.

        Raises:
            PolicyError: The factors are none, out of range or not different, or the dataset has no length.
        """
        for factor in factors:
            check_count("factors", factor, least=0)
        if not factors or len(set(factors)) != len(factors):
            raise PolicyError(f"factors: expected at least one, none twice, got {list(factors)}")
        if not isinstance(dataset, Sized):
            raise PolicyError(f"dataset: expected one with a length, got {type(dataset).__name__}")
        self.dataset = dataset
        self.factors = tuple(factors)
        self._length = len(dataset)
        self._count = count

    def __len__(self) -> int:
        return self._length * len(self.factors)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        factor, example = divmod(index, self._length)
        fields = dict(self.dataset[example])
        return fields | {IMAGE_FACTORS: [self.factors[factor]] * self._count(fields)}


class ImageFactorCollator:
    """Another collator that also batches the `image_factors` of its examples.

    The batch gets `image_factors` int64 [number of images], the images of one example after those of the one before,
    which is how every collator here puts `pixel_values` together.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        """Takes the collator of everything else; it never sees the factors."""
        self.collator = collator

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Batches the examples.

        Raises:
            PlaceholderError: Some examples have factors and others do not.
        """
        having = [IMAGE_FACTORS in example for example in examples]
        batch = self.collator(
            [{name: example[name] for name in example if name != IMAGE_FACTORS} for example in examples]
        )
        if not any(having):
            return batch
        if not all(having):
            raise PlaceholderError(
                f"{IMAGE_FACTORS}: expected in all {len(having)} examples or in none, got in {sum(having)}"
            )
        factors = [int(factor) for example in examples for factor in example[IMAGE_FACTORS]]
        return batch | {IMAGE_FACTORS: torch.tensor(factors, dtype=torch.int64)}
