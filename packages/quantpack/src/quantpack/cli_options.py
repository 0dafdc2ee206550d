"""What the options of a command mean: recipes, calibration data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantpack.accuracy import answer_accuracy
from quantpack.calibration.dataset import Question, as_samples, batches, read_questions
from quantpack.calibration.sites import Method
from quantpack.errors import SchemeError
from quantpack.methods.ecm import Ecm, Rounding
from quantpack.methods.gptq import Gptq
from quantpack.methods.nearest import Nearest
from quantpack.methods.registry import METHODS
from quantpack.search.ecm import Accuracy

MethodName = Literal["rtn", "gptq", "awq", "smoothquant", "mbq", "ecm"]
_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Data:
    """A dataset file on the command line.

    Attributes:
        file: LLaVA JSON/JSONL or VQA JSONL.
        images: Folder of its images; None: the file's own.
        num_samples: Questions to calibrate on.
        num_questions: Questions to measure accuracy on.
    """

    file: Path
    images: Path | None
    num_samples: int
    num_questions: int

    def samples(self, model_dir: Path) -> list[dict[str, Any]]:
        """Calibration samples, of split "train" where the file has splits."""
        found = read_questions(model_dir, self.file, self.images, split="train", num_questions=self.num_samples)
        return as_samples(batches(found, _BATCH_SIZE))

    def questions(self, model_dir: Path, split: Literal["train", "test"]) -> list[Question]:
        """Questions to measure on, of a split where the file has splits: a search must not see "test"."""
        found = read_questions(model_dir, self.file, self.images, split=split, num_questions=self.num_questions)
        return batches(found, _BATCH_SIZE)

    def search_accuracy(self, model_dir: Path) -> Accuracy:
        """Answer accuracy on training questions."""
        questions = self.questions(model_dir, "train")
        return lambda model: answer_accuracy(model, questions)


def method_of(name: MethodName, rounding: Rounding, alpha: float | None) -> Method:
    """The method that the options name.

    Raises:
        SchemeError: An option that the method does not have.
    """
    if alpha is not None and name != "ecm":
        raise SchemeError(f"--alpha: expected it with --method ecm only, got --method {name}")
    if name == "ecm":
        return Ecm(alpha=alpha or 0.0, rounding=rounding)
    if rounding == "gptq" and name not in ("rtn", "gptq"):
        raise SchemeError(f"--rounding gptq: expected it with --method rtn or ecm, got --method {name}")
    if name == "rtn":
        return Gptq() if rounding == "gptq" else Nearest()
    return METHODS[name]()
