import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tokenreduce import PlaceholderError, PolicyError, ReductionPolicy, attach
from tokenreduce.training.augmentation import AtEveryFactor, ImageFactorCollator, count_images


def test_each_example_comes_once_for_each_factor(examples):
    dataset = AtEveryFactor(examples, (1, 2, 3))
    assert len(dataset) == 30
    seen = set()
    for index in range(30):
        item = dataset[index]
        assert item["pixel_values"] is examples[index % 10]["pixel_values"]
        seen.add((index % 10, *item["image_factors"]))
    assert seen == {(example, factor) for example in range(10) for factor in (1, 2, 3)}
    assert "image_factors" not in examples[0]
    with pytest.raises(IndexError):
        dataset[30]
    with pytest.raises(IndexError):
        dataset[-1]


def test_a_sampler_orders_an_epoch(examples, collate):
    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            AtEveryFactor(examples, (1, 3)),
            batch_size=4,
            shuffle=True,
            generator=generator,
            collate_fn=ImageFactorCollator(collate),
        )
        return [
            (tuple(ids.tolist()), factor)
            for batch in loader
            for ids, factor in zip(batch["input_ids"], batch["image_factors"].tolist(), strict=True)
        ]

    assert epoch(1) == epoch(1) != epoch(2)
    assert sorted(epoch(1)) == sorted(epoch(2))
    assert len(set(epoch(1))) == 20


def test_a_model_trains_on_one_image_at_several_factors(llama, examples, collate, make_trainer):
    handle = attach(llama, ReductionPolicy(tau=0.3))
    dataset, collator = AtEveryFactor(examples, (1, 2, 3)), ImageFactorCollator(collate)
    trainer = make_trainer(
        llama, handle, [], train_dataset=dataset, data_collator=collator, num_train_epochs=1, max_steps=-1
    )
    trainer.train()
    used = [factor for _, factors in trainer.trained for factor in factors]
    assert {factor: used.count(factor) for factor in set(used)} == {1: 10, 2: 10, 3: 10}


def test_examples_of_several_images_and_of_none(llama, pixels, prompt, collate):
    examples = [
        {"input_ids": prompt(4, 1, num_images=2), "pixel_values": pixels[:2]},
        {"input_ids": prompt(68, 2), "pixel_values": pixels[2]},
        {"input_ids": prompt(132, 3, num_images=0), "pixel_values": pixels[:0]},
    ]
    dataset = AtEveryFactor(examples, (2, 3))
    assert [dataset[index]["image_factors"] for index in range(6)] == [[2, 2], [2], [], [3, 3], [3], []]
    batch = ImageFactorCollator(collate)([dataset[3], dataset[1], dataset[2]])
    assert batch["image_factors"].tolist() == [3, 3, 2]
    handle = attach(llama, ReductionPolicy(tau=0.3))
    llama(**batch)
    assert handle.last_factors == [3, 3, 2]
    assert handle.last_num_visual_tokens == [9, 9, 16]


def test_0_leaves_the_choice_to_the_reducer(llama, examples, collate):
    handle = attach(llama, ReductionPolicy(tau=1e-9))
    dataset = AtEveryFactor(examples, (3, 0))
    llama(**ImageFactorCollator(collate)([dataset[1], dataset[11]]))
    assert handle.last_factors == [3, 1]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ({}, 0),
        ({"pixel_values": None}, 0),
        ({"pixel_values": torch.zeros(3, 8, 8)}, 1),
        ({"pixel_values": torch.zeros(4, 3, 8, 8)}, 4),
        ({"pixel_values": torch.zeros(2, 3, 8, 8).numpy()}, 2),
        ({"pixel_values": [torch.zeros(3, 8, 8), torch.zeros(3, 4, 8)]}, 2),
        ({"pixel_values": torch.zeros(2, 5, 3, 8, 8), "image_sizes": torch.tensor([[8, 16], [16, 8]])}, 2),
        ({"pixel_values": torch.zeros(5, 3, 8, 8), "image_sizes": [8, 16]}, 1),
        ({"pixel_values": torch.zeros(64, 12), "image_grid_thw": torch.tensor([[1, 4, 8], [1, 4, 8]])}, 2),
    ],
)
def test_images_are_counted(example, expected):
    assert count_images(example) == expected


def test_bad_input(examples, collate):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(examples)

    class Empty(Dataset):
        def __len__(self):
            return 0

    for factors, match in [((), "at least one"), ((1, 1), "none twice"), ((1, -2), "got -2"), ((1.5,), "got 1.5")]:
        with pytest.raises(PolicyError, match=match):
            AtEveryFactor(examples, factors)
    with pytest.raises(PolicyError, match="dataset: expected one with a length, got Stream"):
        AtEveryFactor(Stream(), (1, 2))
    with pytest.raises(IndexError):
        AtEveryFactor(Empty(), (1, 2))[0]
    with pytest.raises(PlaceholderError, match="pixel_values: expected a tensor of rank 3 or 4"):
        count_images({"pixel_values": torch.zeros(2, 5, 3, 8, 8)})
    factored = AtEveryFactor(examples, (2,))
    with pytest.raises(PlaceholderError, match="image_factors: expected in all 2 examples or in none, got in 1"):
        ImageFactorCollator(collate)([factored[0], examples[1]])
    assert "image_factors" not in ImageFactorCollator(collate)(examples[:2])
