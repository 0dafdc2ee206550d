"""The images and questions that runs train and are tested on."""

from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from stagetrain import ImageGroups
from vlmpress.data import QuestionPrior, Record, load_records, split_records

EASY_VQA = Path(__file__).resolve().parents[4] / ".." / "shared" / "data" / "easy_vqa"
NUM_FRAMES, FRAME_SHARE = 4, 0.7


@dataclass(frozen=True, slots=True)
class Questions:
    """Records of the two splits."""

    train: list[Record]
    test: list[Record]

    @property
    def groups(self) -> tuple[ImageGroups, ImageGroups]:
        """Training and test records by image."""
        return ImageGroups(self.train), ImageGroups(self.test)

    def prior(self) -> dict[str, float]:
        """Accuracy of the commonest training answer to the very same question, by question type."""
        return QuestionPrior.fit(self.train).accuracy(self.test)


def read_questions(file: Path, images: Path | None) -> Questions:
    """Splits as the file says, else a fixed tenth of the images for the test."""
    train, test = split_records(load_records(file, images), seed=0)
    return Questions(train, test)


def as_clips(questions: Questions, folder: Path, num_images: tuple[int, int]) -> Questions:
    """Records of the first images of each split, each image shown as four frames of a panning camera.

    A frame is a corner of the image, 0.7 of its sides, brought back to its size: most of them cut the shape.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        _first(records, limit) for records, limit in zip((questions.train, questions.test), num_images, strict=True)
    ]
    frames = {image: _frames(image, folder) for records in made for image in {record.images[0] for record in records}}
    clips = [[replace(record, images=frames[record.images[0]]) for record in records] for records in made]
    return Questions(*clips)


def _first(records: list[Record], limit: int) -> list[Record]:
    chosen = set(list(dict.fromkeys(record.images[0] for record in records))[:limit])
    return [record for record in records if record.images[0] in chosen]


def _frames(image: Path, folder: Path) -> tuple[Path, ...]:
    name = "-".join(image.parts[-3:]).removesuffix(image.suffix)
    paths = tuple(folder / f"{name}-{number}.png" for number in range(NUM_FRAMES))
    if not paths[-1].exists():
        with Image.open(image) as file:
            whole = file.convert("RGB")
        width, height = (round(FRAME_SHARE * side) for side in whole.size)
        for number, path in enumerate(paths):
            left = (whole.width - width) * (number % 2)
            top = (whole.height - height) * (number // 2)
            whole.crop((left, top, left + width, top + height)).resize(whole.size).save(path)
    return paths
