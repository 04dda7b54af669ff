"""score.picture_shape: from img2dataset's columns or from the picture's own header."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from curate.score.picture_shape import PictureShape
from tests.tiny.pictures import encoded, quadrants, with_orientation


def measured(stage: PictureShape, table: pa.Table) -> dict[str, list[object]]:
    done = stage.process(table, stage.open())
    assert done.schema == stage.writes()
    return done.to_pydict()


def test_of_the_picture_as_fetched() -> None:
    table = pa.table(
        {
            "original_width": pa.array([200, 300, None, 0, 1], pa.int32()),
            "original_height": pa.array([600, 300, 5, 10, 100_000_000], pa.int32()),
        }
    )
    found = measured(PictureShape(), table)
    assert found["min_side_px"] == [200, 300, None, None, 1]
    assert found["aspect_ratio"] == [3.0, 1.0, None, None, 100_000_000.0]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_a_size_that_is_no_whole_number_of_pixels_is_not_known(kind: pa.DataType) -> None:
    wide = [200.0, float("nan"), float("inf"), -float("inf"), 99.5, 1e18, -3.0, None]
    table = pa.table(
        {
            "original_width": pa.array(wide, kind),
            "original_height": pa.array([100] * 8, pa.uint64()),
        }
    )
    for height in (table["original_height"], pa.array([Decimal("100.00")] * 8)):
        table = table.set_column(1, "original_height", height)
        found = measured(PictureShape(), table)
        assert found["min_side_px"] == [100, *[None] * 7]
        assert found["aspect_ratio"] == [2.0, *[None] * 7]
    huge = pa.table({"original_width": pa.array([2**63], pa.uint64()), "original_height": [5]})
    assert measured(PictureShape(), huge)["min_side_px"] == [None]


def test_sizes_must_be_numbers() -> None:
    kinds = {"original_width": pa.float64(), "original_height": pa.string()}
    with pytest.raises(ValueError, match=r"'original_height' is string, not a number\. hint"):
        PictureShape().check_columns(kinds)
    PictureShape().check_columns({**kinds, "original_height": pa.int16()})
    PictureShape(of="stored").check_columns({"image": pa.binary()})


def test_a_ratio_just_over_three_is_over_three() -> None:
    table = pa.table({"original_width": [601, 3 * 30_000 + 1], "original_height": [200, 30_000]})
    assert all(ratio > 3 for ratio in measured(PictureShape(), table)["aspect_ratio"])  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_of_the_picture_as_stored(kind: str, orientation: int) -> None:
    image = with_orientation(quadrants(90, 60), orientation, kind)
    found = measured(PictureShape(of="stored"), pa.table({"image": [image]}))
    assert (found["min_side_px"], found["aspect_ratio"]) == ([60], [1.5])
    assert found["keep"] == [True]


def test_a_cut_picture_still_has_its_header_and_rubbish_has_none() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    cut = encoded(noise, "JPEG")[:2000]
    table = pa.table({"image": pa.array([cut, b"<html>", b"", None], pa.binary())})
    found = measured(PictureShape(of="stored"), table)
    assert found["min_side_px"] == [64, None, None, None]
    assert found["aspect_ratio"] == [1.0, None, None, None]
    prefix = "error.score.picture_shape."
    assert found["reason"] == [None, f"{prefix}decode", f"{prefix}decode", f"{prefix}no_image"]


def test_what_it_reads_follows_the_option() -> None:
    assert PictureShape().reads() == ("original_width", "original_height")
    assert PictureShape().writes().names == ["min_side_px", "aspect_ratio"]
    assert PictureShape(of="stored").reads() == ("image",)
