"""The steps that train: vision tower, teacher, plain student, student under DFMR, edge model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, CLIPVisionModel, LlavaForConditionalGeneration, TrainingArguments

from edgevlm import EdgeModelSpec, build_from_llava
from edgevlm.wire import spec_to_proto
from stagetrain import (
    ConversationCollator,
    ImageGroups,
    LearningRateCurve,
    Schedule,
    edge_schedule,
    named_schedule,
    train,
)
from stagetrain.loop.learning_rates import CurveKind
from tokenreduce import ReductionPolicy, attach, calibrate, detach, features_of, plan
from tokenreduce.wire import policy_from_proto, policy_to_proto
from vlmpress.artifact import Artifact, write_policy
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.data import Record
from vlmpress_services.datasets import read_split
from vlmpress_services.losses import tail_mean
from vlmpress_services.pipeline.config import EdgeStep, ReductionStep, TowerStep, TrainStep
from vlmpress_services.pipeline.stepping import Outcome, Work
from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower
from vlmpress_services.pipeline.tower import attribute_task, pretrain_tower

SHAPE = TinyShape()
WARMUP_STEPS = 50
SAVE_EVERY_STEPS = 200
IMAGES_PER_STEP = 16
VISION = "model.vision_tower."


def make_tower(dataset: Artifact, config: TowerStep, seed: int, work: Work) -> Outcome:
    """Pretrains the vision tower; the directory holds it and the processor of all later models."""
    records = read_split(dataset.path, "train")
    processor = build_processor(records, SHAPE)
    tower = build_tower(SHAPE, seed)
    cache: dict[Path, torch.Tensor] = {}

    def pixels(paths: Sequence[Path]) -> torch.Tensor:
        for path in paths:
            if path not in cache:
                cache[path] = _pixel_values(processor, path)
        return torch.stack([cache[path] for path in paths])

    losses = pretrain_tower(tower, attribute_task(records), pixels, config, seed, work.progress.update)
    _save(tower, processor, work.path)
    return Outcome(model_spec(tower), {"final_loss_nats": tail_mean(losses)})


def fresh_llava(tower: Artifact, num_layers: int, seed: int) -> tuple[LlavaForConditionalGeneration, Any]:
    """A Llava model with the trained tower, frozen, and everything else fresh; with its processor."""
    processor = AutoProcessor.from_pretrained(tower.path)
    model = build_llava(CLIPVisionModel.from_pretrained(tower.path), processor, SHAPE, num_layers, seed)
    return freeze_tower(model), processor


def freeze_tower(model: Any) -> Any:
    """The model, its vision tower without gradients."""
    for name, parameter in model.named_parameters():
        if name.startswith(VISION):
            parameter.requires_grad_(False)
    return model


def make_llava(tower: Artifact, dataset: Artifact, config: TrainStep, seed: int, work: Work) -> Outcome:
    """Trains a fresh Llava model under a scheme of stagetrain."""
    model, processor = fresh_llava(tower, config.num_layers, seed)
    schedule = named_schedule(config.scheme, config.num_layers)
    settings = _settings(config, seed, work, config.images_per_step)
    records = read_split(dataset.path, "train")
    losses = _train(model, processor, records, schedule, settings, work, curve=_curve(config.lr_schedule))
    _save(model, processor, work.path)
    return Outcome(model_spec(model), {"final_loss_nats": tail_mean(losses)})


def make_reduced(
    student: Artifact, dataset: Artifact, policy: Artifact, config: ReductionStep, seed: int, work: Work
) -> Outcome:
    """Trains the distilled student under the policy it will be served with, and puts the policy beside its weights."""
    model, processor = open_llava(student)
    proto = policy.manifest.reduction_policy
    attach(model, policy_from_proto(proto))
    settings = _settings(config, seed, work)
    schedule = named_schedule("plain", model.config.get_text_config().num_hidden_layers)
    losses = _train(model, processor, read_split(dataset.path, "train"), schedule, settings, work)
    detach(model)
    _save(model, processor, work.path)
    write_policy(work.path, proto)
    return Outcome(model_spec(model), {"final_loss_nats": tail_mean(losses)})


def make_policy(student: Artifact, dataset: Artifact, config: ReductionStep, work: Work) -> Outcome:
    """The policy of a given tau, or tau calibrated on training images so that a share of visual tokens stays."""
    model, processor = open_llava(student)
    records = read_split(dataset.path, "train")
    paths = list(dict.fromkeys(path for record in records for path in record.images))
    paths = paths[: config.num_calibration_images]
    batches = []
    with torch.no_grad():
        for start in range(0, len(paths), 32):
            pixels = torch.stack([_pixel_values(processor, path) for path in paths[start : start + 32]])
            batches.append(features_of(model, pixels))
            work.progress.update(start, len(paths))
    if config.tau is None:
        policy = calibrate(batches, config.token_share * SHAPE.num_visual_tokens, factors=config.factors)
        mean_tokens = policy.calibrated_mean_tokens
    else:
        policy = ReductionPolicy(tau=config.tau, factors=config.factors)
        _, mean_tokens = plan(torch.cat(batches), policy)
    proto = policy_to_proto(policy)
    write_policy(work.path, proto)
    return Outcome(proto, {"calibrated_mean_tokens": mean_tokens, "num_images": float(len(paths))})


def make_edge(student: Artifact, dataset: Artifact, config: EdgeStep, seed: int, work: Work) -> Outcome:
    """Builds the edge model from the student's tower, projector and LLM, trains it in stages, saves it in bfloat16."""
    llava, llava_processor = open_llava(student)
    model, processor = build_from_llava(
        llava, llava_processor, num_compressed_tokens=config.num_compressed_tokens, fusion=config.fusion, seed=seed
    )
    freeze_tower(model)
    # Of those parts that the model has: fusion "none" is none.
    parts = ("model.multi_modal_projector.", "model.compressor.", "model.fusion.")
    connectors = tuple(part for part in parts if any(name.startswith(part) for name, _ in model.named_parameters()))
    schedule = edge_schedule(connectors, config.connector_share, (1.0, config.full_learning_rate_scale))
    settings = _settings(config, seed, work)
    losses = _train(model, processor, read_split(dataset.path, "train"), schedule, settings, work)
    _save(model.bfloat16(), processor, work.path)
    return Outcome(spec_to_proto(EdgeModelSpec.of(model.config)), {"final_loss_nats": tail_mean(losses)})


def open_llava(artifact: Artifact) -> tuple[LlavaForConditionalGeneration, Any]:
    """A Llava artifact's model, its tower frozen, and processor."""
    model = LlavaForConditionalGeneration.from_pretrained(artifact.path)
    return freeze_tower(model), AutoProcessor.from_pretrained(artifact.path)


def _settings(
    config: TrainStep | ReductionStep | EdgeStep, seed: int, work: Work, images_per_step: int = IMAGES_PER_STEP
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work.scratch),
        max_steps=config.num_steps,
        per_device_train_batch_size=images_per_step,
        learning_rate=config.learning_rate,
        adam_beta2=0.98,
        weight_decay=0.01,
        seed=seed,
        save_steps=SAVE_EVERY_STEPS,
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _curve(kind: CurveKind = "cosine") -> LearningRateCurve:
    return LearningRateCurve(kind=kind, warmup_steps=WARMUP_STEPS)


def _train(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    schedule: Schedule,
    args: TrainingArguments,
    work: Work,
    curve: LearningRateCurve | None = None,
) -> Sequence[float]:
    collator = ConversationCollator(processor, seed=args.seed)
    samples = ImageGroups(records)
    on_progress = work.progress.update
    return train(
        model, samples, collator, schedule, args, curve=curve or _curve(), max_skipped=0, on_progress=on_progress
    ).losses


def _pixel_values(processor: Any, path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return processor.image_processor(image.convert("RGB"), return_tensors="pt").pixel_values[0]


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def model_spec(model: Any) -> artifact_pb2.Model:
    """Specification of a model artifact, tied parameters counted once."""
    num_params = sum(parameter.numel() for parameter in model.parameters())
    return artifact_pb2.Model(model_type=model.config.model_type, num_params=num_params)
