import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pretrain.stream import picture
from pretrain.stream.picture import BadPicture, baseline_size, decode_rgb, jpeg_header


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_rgb_comes_back_as_it_was():
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(pixels))), pixels)


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth colours with some noise, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + n) * 60 + np.cos(y / (7 + n)) * 50 + 128 for n in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return np.clip(np.stack(waves, 2) + noise, 0, 255).astype(np.uint8)


JPEGS = [
    {"quality": 90},
    {"quality": 80, "progressive": True},
    {"subsampling": 0},
    {"subsampling": 1},
    {"quality": 95, "keep_rgb": True},
    {"restart_marker_rows": 1},
    {"comment": b"\xff\xd9 not the end"},
]


@pytest.mark.parametrize("options", JPEGS, ids=str)
def test_jpegs_have_pillows_pixels(options):
    data = encoded(Image.fromarray(photograph(61, 83)), "JPEG", **options)
    assert jpeg_header(data) is not None
    assert np.array_equal(decode_rgb(data), picture._by_pillow(data))


def test_grey_jpegs_have_three_channels():
    data = encoded(Image.fromarray(photograph(20, 30)).convert("L"), "JPEG")
    assert jpeg_header(data) == (30, 20, 1)
    assert np.array_equal(decode_rgb(data), picture._by_pillow(data))


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_smaller_decoding_is_the_picture_brought_down(shrink):
    pixels = photograph(163, 250)
    small = decode_rgb(encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0), shrink)
    assert small.shape == (-(-163 // shrink), -(-250 // shrink), 3)
    whole = Image.fromarray(pixels[: 163 // shrink * shrink, : 250 // shrink * shrink])
    brought_down = np.asarray(whole.reduce(shrink)).astype(int)
    inside = small[: brought_down.shape[0], : brought_down.shape[1]]
    assert np.abs(inside - brought_down).mean() < 3


def test_what_cannot_be_decoded_smaller_comes_whole():
    pixels = photograph(40, 40)
    assert np.array_equal(decode_rgb(encoded(Image.fromarray(pixels)), 4), pixels)
    cmyk = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG")
    assert jpeg_header(cmyk) is None
    assert decode_rgb(cmyk, 2).shape == (40, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_every_orientation_is_pillows(orientation, byte_order):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F], exif[0x0112] = "maker", orientation
    data = encoded(Image.fromarray(photograph(24, 40)), "JPEG", exif=exif)
    jpeg = jpeg_header(data)
    assert jpeg is not None
    pixels = decode_rgb(data)
    assert np.array_equal(pixels, picture._by_pillow(data))
    assert jpeg.upright == (pixels.shape[1], pixels.shape[0])
    assert decode_rgb(data, 2).shape == (pixels.shape[0] // 2, pixels.shape[1] // 2, 3)


def test_an_orientation_in_xmp_is_left_to_pillow():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(Image.fromarray(photograph(24, 40)), "JPEG", xmp=xmp)
    assert jpeg_header(data) is None
    assert decode_rgb(data).shape == (40, 24, 3)


def test_a_header_that_ends_early_is_no_header():
    data = encoded(Image.fromarray(photograph(16, 16)), "JPEG", exif=Image.Exif())
    for end in range(0, data.index(b"\xff\xda"), 3):
        assert jpeg_header(data[:end]) is None


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


@pytest.mark.parametrize("format", ["EPS", "TIFF", "PCX", "TGA", "PPM"])
def test_other_formats_are_not_even_opened(format):
    with pytest.raises(BadPicture, match="not_decodable"):
        decode_rgb(encoded(Image.new("RGB", (20, 20), (1, 2, 3)), format))


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG2000", "ICO", "WEBP"])
def test_formats_of_photographs_are(format):
    assert decode_rgb(encoded(Image.new("RGB", (32, 32), (1, 2, 3)), format)).shape == (32, 32, 3)


def test_too_many_pixels_are_refused_from_the_header(monkeypatch):
    monkeypatch.setattr(picture, "MAX_PIXELS_PX", 99)
    for format in ("PNG", "JPEG"):
        with pytest.raises(BadPicture, match="too_many_pixels: 10x10"):
            decode_rgb(encoded(Image.new("RGB", (10, 10)), format))


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
                if jpeg_header(data):
                    with pytest.raises(BadPicture):
                        picture._by_pillow(data)
                refused += 1
                continue
            if jpeg_header(data):
                assert np.array_equal(pixels, picture._by_pillow(data)), member.name
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            decoded += 1
    assert decoded > 50
    assert refused > 50


def test_words_for_what_is_no_picture_are_the_same_in_every_run():
    told = set()
    for data in (b"<html>gone</html>", b"", b"\xff\xd8\xff", b"x" * 10_000):
        with pytest.raises(BadPicture) as fault:
            decode_rgb(data)
        told.add(str(fault.value))
    assert told == {"not_decodable: no header of a format that is read here"}


PLAIN = [{}, *({"subsampling": n} for n in range(3)), {"restart_marker_rows": 1}, {"comment": b"\xff\xd9 not the end"}]  # fmt: skip


@pytest.mark.parametrize("options", PLAIN, ids=str)
def test_plain_baseline_jpegs_are_known_by_their_markers(options):
    colours = Image.fromarray(photograph(61, 83))
    assert baseline_size(encoded(colours, "JPEG", quality=90, **options)) == (83, 61)
    sampled = {**options, "subsampling": 0}
    assert baseline_size(encoded(colours.convert("L"), "JPEG", **sampled)) == (83, 61)


def odd_jpegs() -> dict[str, bytes]:
    image = Image.fromarray(photograph(61, 83))
    data, turned = encoded(image, "JPEG"), Image.Exif()
    turned[0x0112] = 6
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    return {
        "progressive": encoded(image, "JPEG", progressive=True),
        "rgb": encoded(image, "JPEG", keep_rgb=True),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "turned": encoded(image, "JPEG", exif=turned),
        "png": encoded(image),
        "cut": data[:-40],
        "more behind it": data + b"\0",
        "a second picture": data + data,
        "a marker in the scan": data[:-200] + b"\xff\xc4" + data[-198:],
        "extended": data[: frame + 1] + b"\xc1" + data[frame + 2 :],
        "odd sampling": data[: frame + 11] + b"\x41" + data[frame + 12 :],
        "odd numbers": data[: frame + 10] + b"\x00" + data[frame + 11 :],
        "one part of the spectrum": data[: scan + 11] + b"\x05" + data[scan + 12 :],
        "Adobe's RGB": data[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\0" + data[2:],
        "no tables": data[:2] + data[frame : frame + 19] + data[scan:],
    }


@pytest.mark.parametrize("what", odd_jpegs())
def test_what_is_odd_is_no_plain_jpeg(what):
    assert baseline_size(odd_jpegs()[what]) is None


def test_adobes_ycc_is_plain():
    data = encoded(Image.fromarray(photograph(61, 83)), "JPEG")
    assert baseline_size(data[:2] + b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\1" + data[2:]) == (83, 61)


def test_no_byte_changed_anywhere_ends_in_an_exception_or_another_size():
    data = bytearray(encoded(Image.fromarray(photograph(24, 24)), "JPEG"))
    scan = data.index(b"\xff\xda")
    for at in range(scan + 20):
        for value in (0, 0xFF, data[at] ^ 1):
            damaged = bytes(data[:at]) + bytes([value]) + bytes(data[at + 1 :])
            size, header = baseline_size(damaged), jpeg_header(damaged)
            assert size is None or (header and size == (header.width, header.height))
            assert baseline_size(damaged[: at + 1]) is None
