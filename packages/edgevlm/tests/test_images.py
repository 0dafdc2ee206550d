import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.serving.images import decode_image


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"),
                                            ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")])  # fmt: skip
def test_good_images(tiny, kind, mode):
    image = decode_image(tiny.encoded(tiny.image(mode=mode), kind))
    assert (image.mode, image.size) == ("RGB", (40, 30))


def test_exif_orientation_is_applied(tiny):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(tiny.encoded(tiny.image(), "JPEG", exif=exif)).size == (30, 40)


def test_16_bit_grey_is_scaled_not_clipped(tiny):
    grey = Image.fromarray(np.full((4, 5), 0x8000, dtype=np.uint16))
    assert decode_image(tiny.encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


def bad_images(tiny):
    good = tiny.encoded(tiny.image())
    frames = [tiny.image(seed) for seed in range(3)]
    return {
        "empty": b"",
        "text": b"hello, not an image",
        "gif": tiny.encoded(tiny.image(), "GIF"),
        "truncated png": good[: len(good) // 2],
        "truncated jpeg": tiny.encoded(tiny.image(), "JPEG")[:-200],
        "flipped bit": good[:60] + bytes([good[60] ^ 1]) + good[61:],
        "animated png": tiny.encoded(frames[0], save_all=True, append_images=frames[1:]),
    }


@pytest.mark.parametrize(
    "name", ["empty", "text", "gif", "truncated png", "truncated jpeg", "flipped bit", "animated png"]
)
def test_bad_images(tiny, name):
    with pytest.raises(ImageError, match=r"^image: expected"):
        decode_image(bad_images(tiny)[name])


def test_pixel_limit(tiny):
    with pytest.raises(ImageError, match="40 x 30"):
        decode_image(tiny.encoded(tiny.image()), max_pixels=1199)
