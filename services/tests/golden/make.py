"""Makes `<version>/edge_packed`, a packed edge model of this version, and what its readers have to find in it.

`python services/tests/golden/make.py`; what a released version has made is never made again.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from edgevlm import build_from_llava
from quantpack import Scheme, pack
from vlmpress.data import Record, Turn
from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from reading import read_pack  # noqa: E402


def save_edge_model(folder: Path) -> None:
    """An edge model of random weights, every one of which has a say, with its processor."""
    shape = TinyShape(image_px=32, hidden_size=32, language_intermediate_size=48, max_positions=256)
    turns = (Turn("what color is the shape ?", "red"), Turn("is it a circle ?", "yes"), Turn("is it blue ?", "no"))
    processor = build_processor([Record("1", (), turns)], shape)
    llava = build_llava(build_tower(shape, seed=0), processor, shape, num_layers=2, seed=0)
    model, processor = build_from_llava(llava, processor, num_compressed_tokens=4, fusion="cross")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    folder = HERE / version("vlmpress-services")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        save_edge_model(Path(made))
        pack(Path(made), folder / "edge_packed", Scheme(group_size=16))
    found = json.dumps(read_pack(folder / "edge_packed"), indent=1)
    (folder / "edge_packed.json").write_text(f"{found}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
