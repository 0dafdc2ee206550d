"""The models of a run, each a step that is made, or found, when it is asked for."""

import sys
from dataclasses import asdict
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

from vlmpress.artifact import Artifact, digest_file
from vlmpress.data import load_records
from vlmpress_services.pipeline import training
from vlmpress_services.pipeline.config import RunConfig, TrainStep
from vlmpress_services.pipeline.datasets import make_dataset
from vlmpress_services.pipeline.distillation import export_student, make_distillation
from vlmpress_services.pipeline.packing import make_packed
from vlmpress_services.pipeline.stepping import Stepper
from vlmpress_services.workers.runners import Runner

DISTRIBUTIONS = ("contracts", "quantpack", "tokenreduce", "stagetrain", "verbdistill", "edgevlm", "services")
VARIANTS = ("teacher", "student_sft", "student_distilled", "student_reduced", "edge", "edge_packed")
"""Models that a run makes and measures, in this order."""


class Models:
    """The artifacts of a run by the names of their steps; what one is made from is made before it.

    Args:
        config: Of the run.
        dataset: As `make_data` gives it.
        stepper: Makes or finds steps.
        runner: Where the distillation runs.
    """

    def __init__(self, config: RunConfig, dataset: Artifact, stepper: Stepper, runner: Runner) -> None:
        self.dataset = dataset
        self._config, self._stepper, self._runner = config, stepper, runner

    def named(self, name: str) -> Artifact:
        """One of `VARIANTS`."""
        artifact: Artifact = getattr(self, name)
        return artifact

    @cached_property
    def tower(self) -> Artifact:
        """The vision tower that all models share."""
        config = self._config.tower
        make = partial(training.make_tower, self.dataset, config, self._config.seed)
        return self._stepper.run("tower", asdict(config), [("dataset", self.dataset)], make)

    @cached_property
    def teacher(self) -> Artifact:
        """The large model."""
        return self._fresh("teacher", self._config.teacher)

    @cached_property
    def student_sft(self) -> Artifact:
        """A small model without a teacher."""
        return self._fresh("student_sft", self._config.student_sft)

    @cached_property
    def distillation(self) -> Artifact:
        """The small model's weights, learned from the teacher."""
        config = self._config
        make = partial(
            make_distillation,
            self.teacher,
            self.tower,
            self.dataset,
            config.student_sft,
            config.distill,
            config.seed,
            self._runner,
        )
        parents = [("teacher", self.teacher), ("tower", self.tower), ("dataset", self.dataset)]
        key = [asdict(config.distill), config.student_sft.num_layers]
        return self._stepper.run("distillation", key, parents, make)

    @cached_property
    def student_distilled(self) -> Artifact:
        """The distilled small model."""
        make = partial(export_student, self.distillation)
        return self._stepper.run("student_distilled", {}, [("distillation", self.distillation)], make)

    @cached_property
    def reduction_policy(self) -> Artifact:
        """DFMR's threshold for the distilled model."""
        config = self._config.reduction
        key = [config.token_share, config.tau, config.factors, config.num_calibration_images]
        make = partial(training.make_policy, self.student_distilled, self.dataset, config)
        parents = [("student", self.student_distilled), ("dataset", self.dataset)]
        return self._stepper.run("reduction_policy", key, parents, make)

    @cached_property
    def student_reduced(self) -> Artifact:
        """The distilled model trained with fewer visual tokens."""
        config = self._config.reduction
        parts = (self.student_distilled, self.dataset, self.reduction_policy)
        make = partial(training.make_reduced, *parts, config, self._config.seed)
        parents = [("student", parts[0]), ("policy", parts[2]), ("dataset", parts[1])]
        return self._stepper.run("student_reduced", asdict(config), parents, make)

    @cached_property
    def edge(self) -> Artifact:
        """The edge model."""
        config = self._config.edge
        make = partial(training.make_edge, self.student_distilled, self.dataset, config, self._config.seed)
        parents = [("student", self.student_distilled), ("dataset", self.dataset)]
        return self._stepper.run("edge", asdict(config), parents, make)

    @cached_property
    def edge_packed(self) -> Artifact:
        """The edge model, packed."""
        config = self._config.pack
        # Only a pack that is calibrated depends on the data.
        data = [("dataset", self.dataset)] if config.num_calibration_questions else []
        make = partial(make_packed, self.edge, self.dataset, config)
        return self._stepper.run("edge_packed", asdict(config), [("model", self.edge), *data], make)

    def _fresh(self, name: str, config: TrainStep) -> Artifact:
        make = partial(training.make_llava, self.tower, self.dataset, config, self._config.seed)
        return self._stepper.run(name, asdict(config), [("tower", self.tower), ("dataset", self.dataset)], make)


MODEL_STEPS = tuple(name for name, member in vars(Models).items() if isinstance(member, cached_property))
"""Names of the steps that make models, and what they need beside the data."""


def make_data(config: RunConfig, stepper: Stepper) -> Artifact:
    """Questions and images of a run, made or found; bad data is the commonest mistake, so this comes first.

    Raises:
        vlmpress.data.DataError: The file is at fault.
    """
    return stepper.run("dataset", _data_key(config), (), partial(make_dataset, config.data, config.seed))


def versions(third_party: bool = False) -> dict[str, str]:
    """Versions of our distributions, and of what does their work."""
    names = [f"vlmpress-{name}" for name in DISTRIBUTIONS]
    found = {name: version(name) for name in names}
    if third_party:
        found |= {name: version(name) for name in ("torch", "transformers")}
        found["python"] = ".".join(str(part) for part in sys.version_info[:3])
    return found


def _data_key(config: RunConfig) -> dict[str, Any]:
    """The data step's configuration; a file counts by its content, its images by name, size and time."""
    key = asdict(config.data)
    if config.data.file is not None:
        records = load_records(config.data.file, config.data.images)
        images = sorted({path for record in records for path in record.images})
        key["sha256"] = digest_file(config.data.file)
        key["images"] = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in images]
    return key
