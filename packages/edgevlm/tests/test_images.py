import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from edgevlm.errors import ImageError
from edgevlm.serving.images import MAX_IMAGE_PIXELS, MAX_IMAGES, decode_image, decode_images

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(("kind", "mode"), [
    *(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
])  # fmt: skip
def test_good_images(tiny, kind, mode):
    image = decode_image(tiny.encoded(tiny.image(mode=mode), kind))
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(("orientation", "size", "corner"), [
    (1, (3, 2), (0, 0)), (2, (3, 2), (2, 0)), (3, (3, 2), (2, 1)), (4, (3, 2), (0, 1)), (5, (2, 3), (0, 0)),
    (6, (2, 3), (1, 0)), (7, (2, 3), (1, 2)), (8, (2, 3), (0, 2)),
])  # fmt: skip
def test_exif_orientation_is_applied(tiny, orientation, size, corner):
    exif, pixels = Image.Exif(), Image.new("RGB", (3, 2))
    exif[0x0112] = orientation
    pixels.putpixel((0, 0), (255, 255, 255))
    upright = decode_image(tiny.encoded(pixels, exif=exif))
    assert (upright.size, upright.getpixel(corner)) == (size, (255, 255, 255))


def test_16_bit_grey_is_scaled_not_clipped(tiny):
    grey = Image.fromarray(np.full((4, 5), 0x8000, dtype=np.uint16))
    assert decode_image(tiny.encoded(grey)).getpixel((0, 0)) == (128, 128, 128)


def test_16_bit_colour():
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0) * 2
    data = png(2, 2, zlib.compress(row * 2), depth=16)
    assert decode_image(data).getpixel((1, 1)) == (255, 128, 0)


@pytest.mark.parametrize("transparency", [0, bytes([0, 128, 255])])
def test_a_palette_with_transparency(tiny, transparency):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image = decode_image(tiny.encoded(palette, transparency=transparency))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (0, 255, 0))


def test_a_colour_made_transparent_is_dropped(tiny):
    image = decode_image(tiny.encoded(Image.new("RGB", (4, 4), "red"), transparency=(255, 0, 0)))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 0, 0))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, compressed, depth=8, colour=2, extra=b""):
    """A PNG by its parts."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return PNG_START + header + extra + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def jpeg_of_size(tiny, width, height):
    """A JPEG that says it has another size."""
    data = bytearray(tiny.encoded(tiny.image(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">2H", height, width)
    return bytes(data)


def bad_images(tiny):
    good = tiny.encoded(tiny.image())
    frames = [tiny.image(seed) for seed in range(3)]
    zeros = zlib.compress(bytes(1 << 26), 9)
    return {
        "empty": b"",
        "text": b"hello, not an image",
        "gif": tiny.encoded(tiny.image(), "GIF"),
        "animated gif": tiny.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "webp": tiny.encoded(tiny.image(), "WEBP"),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "truncated png": good[: len(good) // 2],
        "png header alone": good[:40],
        "truncated jpeg": tiny.encoded(tiny.image(), "JPEG")[:-200],
        "flipped bit": good[:60] + bytes([good[60] ^ 1]) + good[61:],
        "animated png": tiny.encoded(frames[0], save_all=True, append_images=frames[1:]),
        "png without rows": png(4, 0, zlib.compress(b"")),
        "png without columns": png(0, 4, zlib.compress(b"\0" * 4)),
        "jpeg without rows": jpeg_of_size(tiny, 40, 0),
        "jpeg without columns": jpeg_of_size(tiny, 0, 30),
        "bomb of a png": png(50_000, 50_000, zeros),
        "large png": png(12_000, 9_000, zeros),
        "bomb of a jpeg": jpeg_of_size(tiny, 65_000, 65_000),
        "bomb of a comment": png(4, 4, zlib.compress(bytes(52)), extra=chunk(b"zTXt", b"a\0\0" + zeros)),
        "bomb of a profile": png(4, 4, zlib.compress(bytes(52)), extra=chunk(b"iCCP", b"a\0\0" + zeros)),
        "line": png(100_000, 1, zlib.compress(bytes(300_001))),
        "too few pixels": png(40, 40, zlib.compress(bytes(100))),
    }


BAD = (
    "empty", "text", "gif", "animated gif", "webp", "svg", "truncated png", "png header alone", "truncated jpeg",
    "flipped bit", "animated png", "png without rows", "png without columns", "jpeg without rows",
    "jpeg without columns", "bomb of a png", "large png", "bomb of a jpeg", "bomb of a comment", "line",
    "too few pixels",
)  # fmt: skip


@pytest.fixture(scope="module")
def bad(tiny):
    return bad_images(tiny)


@pytest.mark.parametrize("name", BAD)
def test_bad_images(bad, name):
    with pytest.raises(ImageError, match=r"^image: expected") as caught:
        decode_image(bad[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bomb of a png", "large png", "bomb of a jpeg", "line", "png without rows"])
def test_a_bomb_is_never_decoded(bad, name, monkeypatch):
    decoded = []
    for kind in (Image.Image, PngImagePlugin.PngImageFile):
        monkeypatch.setattr(kind, "load", lambda self: decoded.append(self.size))
    with pytest.raises(ImageError):
        decode_image(bad[name])
    with pytest.raises(ImageError):
        decode_images([bad[name]])
    assert decoded == []


def test_a_profile_that_is_a_bomb_does_no_harm(bad):
    with contextlib.suppress(ImageError):
        assert decode_image(bad["bomb of a profile"]).size == (4, 4)


def test_any_damage_is_an_image_error(tiny):
    """Random damage anywhere: an image or an ImageError, nothing else."""
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG"):
        good = np.frombuffer(tiny.encoded(tiny.image(), kind), dtype=np.uint8)
        for _ in range(300):
            damaged = good.copy()
            places = random.integers(0, len(good), random.integers(1, 4))
            damaged[places] = random.integers(0, 256, len(places))
            try:
                assert decode_image(damaged[: random.integers(1, len(good) + 1)].tobytes()).mode == "RGB"
            except ImageError:
                continue


def test_pixel_limit(tiny):
    with pytest.raises(ImageError, match="40 x 30"):
        decode_image(tiny.encoded(tiny.image()), max_pixels=1199)


def test_limits_of_several_images(tiny):
    image, data = tiny.image(), tiny.encoded(tiny.image())
    assert [made.mode for made in decode_images([image, data])] == ["RGB", "RGB"]
    with pytest.raises(ImageError, match="at most 2399 pixels together, got 2400"):
        decode_images([image, data], max_pixels=2399)
    with pytest.raises(ImageError, match=f"at most {MAX_IMAGES}, got {MAX_IMAGES + 1}"):
        decode_images([data] * (MAX_IMAGES + 1))
    with pytest.raises(ImageError, match="got none"):
        decode_images([data, b""])


def test_the_largest_image_is_decoded():
    side = int(MAX_IMAGE_PIXELS**0.5)
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue()).size == (side, side)
