"""One point of memory against CR, in a process of its own: python memory_point.py LAYERS POINT CHECKPOINTING.

Linux only: the kernel's count of the peak is set back before the steps that are measured.
"""

import gc
import json
import sys
from pathlib import Path

POINTS = {8: ("off", "4.8", "1.2", "2.8", "1.8", "1.64"), 32: ("off", "16.8", "2.2", "2.8", "2.64")}
"""By decoder layers: no compression, or layer and stride."""
# With checkpointing and wide layers, gradients of all weights outweigh what the layers' inputs take.
SIZES = {8: {"batch": 4, "hidden_size": 256, "num_heads": 8}, 32: {"batch": 8, "hidden_size": 128, "num_heads": 4}}


def main() -> None:
    import torch

    from stagetrain import CompressionSetting, compression_ratio_percent
    from stagetrain.loop.feature_cache import cache_vision_features
    from stagetrain.timing.synthetic import SyntheticShape, synthetic_batch, synthetic_llava
    from stagetrain.timing.wall_clock import FEATURE_BYTES, StepTimer

    torch.set_num_threads(1)
    num_layers, point, checkpointing = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
    shape = SyntheticShape(num_layers=num_layers, **SIZES[num_layers])
    model, batch = synthetic_llava(shape), synthetic_batch(shape)
    if checkpointing:
        model.gradient_checkpointing_enable()
    setting = None
    if point != "off":
        layer, stride = map(int, point.split("."))
        setting = CompressionSetting(layer=layer, stride=stride)
    timer = StepTimer(model, batch)
    with cache_vision_features(model, FEATURE_BYTES):
        # The first step makes the optimizer's state and the features.
        timer.compress(CompressionSetting(layer=1, stride=64))
        timer.step()
        timer.compress(setting)
        gc.collect()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        steps = [timer.step() for _ in range(2)]
        peak = _status("VmHWM")
    ratio = compression_ratio_percent(num_layers, shape.num_visual_tokens, setting)
    row = {"cr_percent": ratio, "before_bytes": before, "peak_bytes": peak, "step_cpu_s": min(s.cpu_s for s in steps)}
    print(json.dumps(row))


def _status(name: str) -> int:
    """A field of the kernel's account of this process, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


if __name__ == "__main__":
    main()
