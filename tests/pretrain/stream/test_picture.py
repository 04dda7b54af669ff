import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pretrain.stream import picture
from pretrain.stream.picture import BadPicture, decode_rgb


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_rgb_comes_back_as_it_was():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(pixels))), pixels)


def test_transparent_pixels_are_white_in_every_mode_that_has_them():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    for data in (
        encoded(clear),
        encoded(clear.convert("LA")),
        encoded(palette, transparency=1),
        encoded(clear, "WEBP", lossless=True),
    ):
        assert decode_rgb(data).tolist() == [[[255] * 3] * 2] * 2
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(decode_rgb(encoded(half))[0, 0, 0]) - 127) <= 1


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.array([[0, 256 * 64, 65535]], dtype=np.uint16)
    assert decode_rgb(encoded(Image.fromarray(ramp)))[0, :, 0].tolist() == [0, 64, 255]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode_rgb(encoded(image, "JPEG", exif=exif)).shape == (4, 2, 3)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "P"])
def test_other_modes_become_rgb(mode):
    assert decode_rgb(
        encoded(Image.new(mode, (3, 2)), "JPEG" if mode == "CMYK" else "PNG")
    ).shape == (2, 3, 3)


def test_bad_bytes_have_a_kind():
    good = encoded(Image.new("RGB", (64, 64), (9, 9, 9)), "JPEG")
    for data in (b"", b"<html>", good[: len(good) // 2]):
        with pytest.raises(BadPicture) as fault:
            decode_rgb(data)
        assert fault.value.kind == "not_decodable"


def test_too_many_pixels_are_refused_from_the_header(monkeypatch):
    monkeypatch.setattr(picture, "MAX_PIXELS_PX", 99)
    with pytest.raises(BadPicture, match="too_many_pixels: 10x10"):
        decode_rgb(encoded(Image.new("RGB", (10, 10))))


def test_awkward_files_decode_or_are_refused_but_never_anything_else(shared_data):
    decoded = refused = 0
    with tarfile.open(shared_data / "awkward.tar") as tar:
        for member in tar:
            if not member.name.startswith("files/") or not member.isfile() or member.size > 200_000:
                continue
            data = tar.extractfile(member).read()
            try:
                pixels = decode_rgb(data)
            except BadPicture:
                refused += 1
                continue
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            decoded += 1
    assert decoded > 50
    assert refused > 50
