"""A body becomes the picture a viewer shows, at the size img2dataset gives it, or one reason."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate.download import pixels
from curate.download.header import header
from curate.download.outcomes import Outcome, Refused
from curate.download.pictures import PictureOptions, Spent, measured, outcome
from curate.score.picture import decode_uncached
from tests.bench.corpus import make
from tests.curate.download.test_header import with_hidden_frame
from tests.curate.download.test_pixels import png_header
from tests.tiny.pictures import (
    corner_colours,
    encoded,
    quadrants,
    shared_data,
    tar_files,
    with_orientation,
)


def of(body: bytes, **options: Any) -> Outcome:
    return outcome(body, PictureOptions(**{"image_size": 64, **options}))


def shown(found: Outcome) -> np.ndarray:
    assert found.kind is None, found
    assert found.image is not None
    pixels = decode_uncached(found.image)
    assert pixels.shape[:2] == (found.height, found.width)
    return pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return 10 * np.log10(255**2 / max(error, 1e-6))


@functools.cache
def textures() -> list[bytes]:
    return make(None, 6, seed=3)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="img2dataset needs imghdr")
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize(
    "mode", ["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
)
def test_exact_gives_img2datasets_bytes(mode: str, only_if_bigger: bool) -> None:
    from curate.download.img2dataset_engine import borrowed

    resizer = borrowed()[1].Resizer
    grey, clear = quadrants(90, 70)[:, :, 1], np.dstack([quadrants(90, 70), noise(90, 70)[:, :, 0]])
    bodies = [
        encoded(noise(200, 130), "JPEG"), encoded(noise(40, 50), "JPEG"), encoded(grey, "JPEG"),
        encoded(noise(64, 80), "PNG"), encoded(grey, "PNG"), encoded(clear, "PNG"), encoded(clear, "WEBP"),
        encoded(np.dstack([grey, grey[::-1]]), "PNG"),
    ]  # fmt: skip
    for extension, quality in (("jpg", 95), ("png", 6), ("webp", 80)):
        theirs = resizer(64, mode, only_if_bigger, encode_format=extension, encode_quality=quality)
        for number, body in enumerate(bodies):
            image, width, height, original_width, original_height, fault = theirs(io.BytesIO(body))
            assert fault is None
            ours = of(
                body, resize_mode=mode, resize_only_if_bigger=only_if_bigger, quality="exact",
                encode_format=extension, encode_quality=quality,
            )  # fmt: skip
            assert (ours.width, ours.height) == (width, height), number
            assert (ours.original_width, ours.original_height) == (original_width, original_height)
            assert ours.image == image, (number, extension)


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def test_fast_is_near_exact() -> None:
    """Textures here, photographs where there are any; progressive ones among both."""
    for body in textures():
        assert psnr(shown(of(body)), shown(of(body, quality="exact"))) > 32


def test_fast_is_near_exact_on_real_photographs() -> None:
    photographs = tar_files(shared_data("scenetext-icdar2015-120.tar"))
    names = sorted(name for name in photographs if name.endswith(".jpg"))[:20]
    found = []
    for name in names:
        size = {"image_size": 256}
        fast, exact = of(photographs[name], **size), of(photographs[name], quality="exact", **size)
        assert (fast.width, fast.height) == (exact.width, exact.height) == (455, 256)
        found.append(psnr(shown(fast), shown(exact)))
    assert np.mean(found) > 37
    assert np.percentile(found, 5) > 32


@pytest.mark.parametrize("quality", ["fast", "exact"])
@pytest.mark.parametrize("mode", ["no", "keep_ratio", "center_crop", "border"])
def test_all_eight_orientations_look_alike(mode: str, quality: str) -> None:
    turns = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's transpose that undoes it
    upright = quadrants(400, 300)
    inverse = {4: 2, 2: 4}  # rotating by 90 is undone by 270
    first = None
    for orientation, turn in turns.items():
        stored = Image.fromarray(upright)
        if turn is not None:
            stored = stored.transpose(Image.Transpose(inverse.get(turn, turn)))
        body = with_orientation(np.asarray(stored), orientation)
        found = of(body, resize_mode=mode, quality=quality)
        assert (found.original_width, found.original_height) == (400, 300)
        pixels = shown(found)
        if first is None:
            first = pixels
        assert pixels.shape == first.shape
        assert psnr(pixels, first) > 30, orientation
        assert Image.open(io.BytesIO(found.image or b"")).getexif().get(0x0112) is None
    if mode != "border":
        assert corner_colours(first) == "rgbw"


def test_deep_grey_is_scaled_and_clear_is_white() -> None:
    deep = np.linspace(0, 65535, 128 * 128).astype(np.uint16).reshape(128, 128)
    assert abs(float(shown(of(encoded(deep))).mean()) - 127.5) < 3
    clear = np.zeros((80, 80, 4), np.uint8)
    assert shown(of(encoded(clear))).min() >= 253
    half = np.full((80, 80, 4), (0, 0, 0, 128), np.uint8)
    assert abs(int(shown(of(encoded(half)))[40, 40, 0]) - 127) <= 2
    hidden = encoded(np.zeros((80, 80), np.uint8), "PNG", transparency=0)
    assert shown(of(hidden)).min() >= 253


def test_cmyk_and_palette_and_moving() -> None:
    file = io.BytesIO()
    Image.fromarray(quadrants(128, 96)).convert("CMYK").save(file, "JPEG", quality=95)
    assert corner_colours(shown(of(file.getvalue()))) == "rgbw"
    assert corner_colours(shown(of(encoded(quadrants(128, 96), "GIF")))) == "rgbw"
    first, second = Image.fromarray(quadrants(128, 96)), Image.new("RGB", (128, 96))
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        file = io.BytesIO()
        first.save(file, kind, save_all=True, append_images=[second])
        assert corner_colours(shown(of(file.getvalue()))) == "rgbw", kind


@pytest.mark.parametrize(
    ("body", "options", "kind"),
    [
        (b"", {}, "not_an_image"),
        (b"<html></html>", {}, "not_an_image"),
        (encoded(quadrants(1, 1), "GIF"), {"min_image_size": 16}, "too_small"),
        (png_header(20_000, 20_000), {}, "too_large.pixels"),
        (png_header(200, 200), {"max_image_area": 39_999}, "too_large.pixels"),
        (png_header(2, 20_000), {"max_aspect_ratio": 20}, "too_large.aspect"),
        (png_header(2, 20_000), {}, "too_large.aspect"),
        (png_header(200, 200), {}, "decode"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, {}, "decode"),
        (encoded(quadrants(200, 200), "JPEG")[:-700], {}, "decode"),
        (encoded(noise(200, 200), "PNG")[:-9000], {}, "decode"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_does_not_come_in_says_why(body: bytes, options: dict[str, Any], kind: str) -> None:
    found = of(body, **options)
    assert found.kind == kind
    assert found.image is None
    assert found.error_message
    assert found.sha256 == hashlib.sha256(body).hexdigest()
    assert found.status == "failed_to_resize"


def test_frames_are_limited() -> None:
    file = io.BytesIO()
    pictures = [Image.fromarray(np.full((64, 64), n * 9 % 256, np.uint8)) for n in range(12)]
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:])
    assert of(file.getvalue(), max_frames=12).kind is None
    assert of(file.getvalue(), max_frames=11).kind == "too_large.frames"


@pytest.mark.parametrize("name", ["md5", "sha256", "sha512"])
def test_the_hash_is_checked(name: str) -> None:
    body = encoded(quadrants(), "JPEG")
    right = hashlib.new(name, body).hexdigest()
    options = PictureOptions(image_size=32, hash_name=name)
    assert outcome(body, options, f" {right.upper()}\n").kind is None
    assert outcome(body, options, None).kind is None
    wrong = outcome(body, options, right[:-1] + ("0" if right[-1] != "0" else "1"))
    assert wrong.kind == "hash"
    assert outcome(b"no picture", options, right).kind == "hash"


def test_clean_bytes_are_kept() -> None:
    body = encoded(noise(64, 90), "JPEG", quality=60)
    options = {"skip_reencode": True, "resize_only_if_bigger": True}
    assert of(body, **options).image == body
    assert of(body, skip_reencode=True).image == body
    for changed in (
        body + b"junk" * 1000,
        encoded(noise(65, 90), "JPEG"),
        encoded(noise(64, 90), "PNG"),
        with_orientation(noise(64, 90), 3),
    ):
        found = of(changed, **options)
        assert found.kind is None
        assert found.image != changed
        assert found.image is not None
        assert found.image.startswith(b"\xff\xd8\xff")
    assert of(body[:-400], **options).kind == "decode"


def test_nothing_is_reencoded_but_what_is_not_clean() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        body = encoded(noise(300, 200), kind)
        found = of(body, disable_all_reencoding=True)
        assert found.image == body
        assert (found.width, found.height, found.original_width) == (300, 200, 300)
    clear = encoded(np.zeros((80, 90, 4), np.uint8))
    found = of(clear, disable_all_reencoding=True)
    assert shown(found).min() >= 253
    assert (found.width, found.height) == (90, 80)
    turned = of(with_orientation(quadrants(), 6), disable_all_reencoding=True)
    assert (turned.width, turned.height) == (48, 64)


def test_junk_after_the_end_does_no_harm() -> None:
    body = encoded(quadrants(100, 80), "JPEG", quality=95)
    assert of(body + b"\xff\xd9junk" * 1_000_000).image == of(body).image


def test_exif_is_img2datasets() -> None:
    pytest.importorskip("exifread")
    found = of(with_orientation(quadrants(), 6), extract_exif=True)
    assert found.exif is not None
    assert json.loads(found.exif)["Image Orientation"] == "Rotated 90 CW"
    assert of(encoded(quadrants()), extract_exif=True).exif == "{}"
    assert of(encoded(quadrants())).exif is None


def test_costs_are_told() -> None:
    spent = Spent()
    measured(textures()[0], PictureOptions(), None, spent)
    assert spent.decode_s > 0
    assert spent.resize_s > 0
    assert spent.encode_s > 0


def test_out_of_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")

    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cv2, "imdecode", none_left)
    assert of(encoded(quadrants(), "JPEG")).kind == "decode.crashed"


@pytest.mark.parametrize("quality", ["fast", "exact"])
def test_a_bomb_behind_a_small_frame_header_is_refused_before_it_is_decoded(
    quality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    large = cv2.imencode(
        ".jpg", np.zeros((10_100, 10_100), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 10]
    )
    body = with_hidden_frame(large[1].tobytes(), 0x01)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    assert of(body, quality=quality).kind == "decode"  # Pillow finds no header that it could read
    with pytest.raises(Refused):
        pixels.ready(body, pixels.Bounds())


def test_pixels_of_another_size_than_announced_are_refused() -> None:
    body = encoded(noise(600, 400), "JPEG")
    head = header(body)
    assert head is not None
    for by in (1, 2, 4, 8):
        with pytest.raises(Refused, match="announced"):
            pixels.decoded(body, replace(head, width=700), by)


def test_what_is_seen_is_held_against_the_limits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon may hold a picture larger than its table says."""
    real = pixels.announced
    monkeypatch.setattr(pixels, "announced", lambda *a: replace(real(*a), plain=False, width=90))
    found = of(encoded(noise(120, 100), "GIF"), max_image_area=10_000)
    assert found.kind == "too_large.pixels"


def test_a_result_is_limited() -> None:
    assert of(png_header(20, 300), image_size=9000).kind == "too_large.aspect"


@pytest.mark.parametrize(
    "body",
    [b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(4000), b"BMW is a car maker " * 20],
)
def test_films_and_words_are_no_pictures(body: bytes) -> None:
    assert of(body).kind == "not_an_image"


def test_a_page_of_text_stays_legible_when_it_is_quick() -> None:
    cv2 = pytest.importorskip("cv2")
    for side in (340, 560, 660, 1000, 1300):
        page = np.full((side, side * 4 // 3, 3), 255, np.uint8)
        for y in range(20, side, 18):
            cv2.putText(page, "The quick brown fox " * 9, (5, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)  # fmt: skip
        for kind, least_db in (("JPEG", 25), ("PNG", 59)):
            body = encoded(page, kind)
            both = [shown(of(body, image_size=256, encode_format="png", encode_quality=1, quality=quality)) for quality in ("fast", "exact")]  # fmt: skip
            assert psnr(*both) > least_db, (side, kind)
