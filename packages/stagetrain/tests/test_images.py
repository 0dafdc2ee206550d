"""Image files of every kind."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stagetrain.errors import ImageUnreadableError
from stagetrain.samples.images import read_image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.array([0, 255], dtype=np.uint8), (4, 3))
    kind = "tif" if mode in ("CMYK", "YCbCr", "I", "PA", "LA") else "png"
    if mode in ("I;16", "I"):
        image = Image.fromarray(grey.astype(np.uint16) * 257).convert(mode)
    else:
        image = Image.fromarray(grey).convert("L" if mode in ("L", "1") else "RGB").convert(mode.replace("PA", "P"))
    path = tmp_path / f"image.{kind}"
    image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = read_image(path)
    assert (made.mode, made.size) == ("RGB", (6, 4))
    np.testing.assert_allclose(np.asarray(made), np.repeat(grey[:, :, None], 3, 2), atol=3)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png"))[..., 0].tolist() == (values // 256).tolist()


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "palette.png", transparency=1)
    assert np.asarray(read_image(tmp_path / "palette.png")).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (4, 8)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "good.png"
    Image.effect_noise((64, 64), 50).save(good)
    files = {
        "empty": b"",
        "text": b"no image",
        "half": good.read_bytes()[:900],
        "garbage": good.read_bytes()[:300] + bytes(400),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    for name in (*files, "float.tif", "missing", "."):
        with pytest.raises(ImageUnreadableError, match="expected an image, got") as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    # Both above the limit and above its double, where Pillow only warns and where it refuses.
    for limit in (3000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageUnreadableError, match="4096 pixels"):
            read_image(good)
