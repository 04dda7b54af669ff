"""img2dataset's resize modes give the pixels that img2dataset gives."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.download import resize
from tests.tiny.pictures import encoded


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 7919 + height).integers(
        0, 256, (height, width, 3), np.uint8
    )


SIZES = [
    (64, 64),
    (40, 30),
    (30, 40),
    (64, 20),
    (200, 90),
    (90, 201),
    (129, 128),
    (1000, 67),
    (63, 400),
]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="img2dataset needs imghdr")
@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", resize.MODES)
def test_pixels_are_img2datasets(mode: str, only_if_bigger: bool) -> None:
    cv2 = pytest.importorskip("cv2")
    from curate.download.img2dataset_engine import borrowed

    for down, up in (("area", "lanczos"), ("cubic", "bilinear"), ("nearest", "area")):
        theirs = borrowed()[1].Resizer(
            64, mode, only_if_bigger, up, down, encode_quality=1, encode_format="png"
        )
        for size in SIZES:
            pixels = noise(*size)
            image, width, height, *_ = theirs(io.BytesIO(encoded(pixels)))
            expected = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
            wanted = resize.target(size, 64, mode, only_if_bigger)
            ours = pixels[:, :, ::-1]
            if wanted is not None:
                number = resize.interpolation(down if wanted.shrinks else up)
                ours = resize.resized(ours, wanted, number)
            assert ours.shape[:2] == (height, width), (mode, size)
            assert np.array_equal(ours, expected), (mode, size, down, up)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="img2dataset needs imghdr")
@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    image_size=st.integers(1, 70),
    mode=st.sampled_from(resize.MODES),
    only_if_bigger=st.booleans(),
)
def test_any_size_is_img2datasets(
    width: int, height: int, image_size: int, mode: str, only_if_bigger: bool
) -> None:
    from curate.download.img2dataset_engine import borrowed

    theirs = borrowed()[1].Resizer(
        image_size, mode, only_if_bigger, encode_format="png", encode_quality=1
    )
    _, *size, _, _, fault = theirs(io.BytesIO(encoded(noise(width, height))))
    assert fault is None
    wanted = resize.target((width, height), image_size, mode, only_if_bigger)
    shape = noise(width, height)
    if wanted is not None:
        shape = resize.resized(shape, wanted, 0)
    assert [shape.shape[1], shape.shape[0]] == size


def test_a_strip_never_loses_a_side() -> None:
    wanted = resize.target((4000, 2), 64, "keep_ratio_largest", False)
    assert wanted is not None
    assert wanted.size == (64, 1)


@pytest.mark.parametrize(
    ("short", "by"), [(256, 1), (665, 1), (666, 2), (1332, 4), (2663, 8), (9000, 8)]
)
def test_reduction_leaves_something_to_shrink(short: int, by: int) -> None:
    size = (short * 3 // 2, short)
    wanted = resize.target(size, 256, "keep_ratio", False)
    assert wanted is not None
    assert resize.reduction(size, wanted) == by


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return 10 * float(np.log10(255**2 / max(error, 1e-6)))


@pytest.mark.parametrize(
    ("left", "least_db"), [(1.2, 28), (1.7, 25), (1.9, 38), (2.3, 36), (3, 60)]
)
def test_lines_of_text_are_nearly_what_area_gives(left: float, least_db: float) -> None:
    import cv2

    side = int(256 * left)
    page = np.full((side, side, 3), 255, np.uint8)
    for y in range(20, side, 18):
        cv2.putText(page, "The quick brown fox " * 4, (5, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)  # fmt: skip
    area = resize.scaled(page, (256, 256), cv2.INTER_AREA)
    assert psnr_db(resize.quickly_shrunk(page, (256, 256)), area) > least_db


def test_a_wrong_interpolation_is_named() -> None:
    with pytest.raises(ValueError, match="hint: one of nearest"):
        resize.interpolation("sharp")
    for name in resize.INTERPOLATIONS:
        assert resize.interpolation(name.upper()) == resize.interpolation(name)
