"""The packing step of the main job."""

import shutil
from dataclasses import asdict

from quantpack import EcmSearch, PartRecipe, Recipe, Scheme
from quantpack.calibration.sites import Method
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.methods.registry import METHODS
from quantpack.scheme import DEFAULT_BLOCKS, Block
from vlmpress.artifact import Artifact
from vlmpress_services.jobs.quantizing.work import QuestionSource, pack_artifact
from vlmpress_services.pipeline.config import PackStep
from vlmpress_services.pipeline.stepping import Outcome, Work


def make_packed(edge: Artifact, dataset: Artifact, step: PackStep, work: Work) -> Outcome:
    """Packs the edge model and takes over the pack's files and specification."""
    made = work.scratch / "pack"
    shutil.rmtree(made, ignore_errors=True)
    data = None
    if step.num_calibration_questions:
        data = QuestionSource(
            dataset=dataset, num_samples=step.num_calibration_questions, num_questions=step.num_search_questions
        )
    pack = pack_artifact(edge, made, order_of(step), data, work.progress.update)
    for file in pack.manifest.files:
        (work.path / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made / file.path, work.path / file.path)
    return Outcome(pack.manifest.quantized_model, dict(pack.manifest.metrics))


def order_of(step: PackStep) -> Recipe | EcmSearch:
    """What a configuration asks quantpack for."""
    if step.max_accuracy_drop:
        return EcmSearch(
            max_drop=step.max_accuracy_drop,
            bits=step.bits,
            group_size=step.group_size,
            axis=step.axis,
            rounding=step.rounding,
        )
    scheme = Scheme(
        bits=step.bits,
        granularity=step.granularity,
        group_size=step.group_size,
        num_rows=step.num_rows,
        blocks=tuple(Block(**asdict(block)) for block in step.blocks) or DEFAULT_BLOCKS,
        axis=step.axis or "out",
        symmetric=step.symmetric,
    )
    return Recipe(default=PartRecipe(scheme=scheme, method=_method(step)), embeddings=step.embeddings)


def _method(step: PackStep) -> Method:
    if step.method == "ecm":
        return Ecm(alpha=step.alpha, rounding=step.rounding)
    return Gptq() if step.rounding == "gptq" else METHODS[step.method]()
