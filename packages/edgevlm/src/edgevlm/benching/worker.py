"""The process that runs one job: reads it as JSON from its argument, prints what it measured as JSON."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging

from edgevlm.benching.jobs import BenchJob, job_config
from edgevlm.benching.random_weights import random_model
from edgevlm.benching.shares import time_shares
from edgevlm.benching.timing import peak_bytes, reset_peak, timed_request
from edgevlm.errors import EdgeVlmError
from edgevlm.model.loading import load_strictly
from edgevlm.profiling.inputs import request_inputs
from edgevlm.profiling.layouts import ImageSize
from vlmpress.artifact import ArtifactError, quantized_loader


def run_job(job: BenchJob) -> dict[str, Any]:
    """What one process measures.

    Returns:
        `ttft_s`, `ttft_cpu_s` and `decode_tokens_per_s` (rows together, None without later tokens), a list each of the
        repeats; `peak_bytes`; `num_params`; with shares, `ttft_shares` and `decode_shares`.

    Raises:
        ArtifactError: A directory cannot be read.
        EdgeVlmError: A model or image cannot be used.
    """
    torch.set_num_threads(job.num_threads)
    config, dtype = job_config(job), getattr(torch, job.dtype)
    model = _load(job, config, dtype).to(job.device).eval()
    inputs = request_inputs(
        config, image=ImageSize.parse(job.image), num_text_tokens=job.num_text_tokens, batch_size=job.batch_size,
        dtype=model.dtype if model.dtype.is_floating_point else dtype, device=job.device,
    )  # fmt: skip
    # Buffers, kernels and caches of the first request are no part of any other's time.
    timed_request(model, inputs, min(job.num_new_tokens, 2))
    reset_peak(model.device)
    timings = [timed_request(model, inputs, job.num_new_tokens) for _ in range(job.num_repeats)]
    measured: dict[str, Any] = {
        "ttft_s": [timing.ttft_s for timing in timings],
        "ttft_cpu_s": [timing.ttft_cpu_s for timing in timings],
        "decode_tokens_per_s": [
            job.batch_size * timing.num_steps / timing.decode_s if timing.num_steps else None for timing in timings
        ],
        "peak_bytes": peak_bytes(model.device),
        "model_type": config.model_type,
        "num_params": sum(parameter.numel() for parameter in model.parameters()),
    }
    if job.with_shares:
        measured["ttft_shares"], measured["decode_shares"] = time_shares(model, config, inputs)
    return measured


def _load(job: BenchJob, config: Any, dtype: torch.dtype) -> Any:
    if not job.is_directory or job.random_weights:
        return random_model(config, dtype=dtype)
    load_quantized = quantized_loader(Path(job.model))
    if load_quantized is not None and job.unpack:
        return load_quantized()
    # Looking the pack's loader up has made its format known to transformers, which keeps weights packed.
    return load_strictly(AutoModelForImageTextToText, Path(job.model), dtype=dtype)


def main() -> int:
    """Runs the job of the first argument; a fault is one line on standard error and exit code 2."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # Nothing a library prints may come between the reader and the answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        try:
            measured = run_job(BenchJob(**json.loads(sys.argv[1])))
        except (EdgeVlmError, ArtifactError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        answer.write(json.dumps(measured) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
