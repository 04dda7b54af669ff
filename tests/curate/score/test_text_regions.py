"""Text is found where it is written, photographs and large objects are left alone, overlaps count once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from curate.score.text_regions import TextRegions, union_area
from tests.tiny.pictures import encoded, shared_data, tar_files

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def detector() -> Any:
    return TextRegions().open()


def measured(images: Sequence[bytes | None], detector: Any, **options: Any) -> list[dict[str, Any]]:
    stage = TextRegions(**options)
    stage.check()
    table = stage.process(pa.table({"image": pa.array(images, pa.binary())}), detector)
    assert table.schema == stage.writes()
    return table.to_pylist()


def noise(seed: int, height: int = 256, width: int = 320) -> np.ndarray:
    """Smooth coloured blobs, as a photograph without text."""
    coarse = np.random.default_rng(seed).integers(40, 216, (6, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def written(words: str, size_px: int = 28, at: tuple[int, int] = (30, 180)) -> np.ndarray:
    image = Image.fromarray(noise(3))
    ImageDraw.Draw(image).text(
        at,
        words,
        (255, 255, 255),
        ImageFont.load_default(size_px),
        stroke_width=2,
        stroke_fill=(0, 0, 0),
    )
    return np.asarray(image)


def test_written_words_are_found_where_they_are(detector: Any) -> None:
    (row,) = measured([encoded(written("SALE TODAY ONLY"))], detector)
    assert row["keep"]
    assert 0.02 < row["text_area_frac"] < 0.25
    x0 = min(box["x0"] for box in row["text_boxes"])
    x1 = max(box["x1"] for box in row["text_boxes"])
    y0 = min(box["y0"] for box in row["text_boxes"])
    assert x0 == pytest.approx(30 / 320, abs=0.05)
    assert 0.7 < x1 <= 1.0
    assert y0 == pytest.approx(183 / 256, abs=0.06)
    assert all(0.5 <= box["confidence"] <= 1 for box in row["text_boxes"])


def test_pictures_without_words_measure_zero(detector: Any) -> None:
    rows = measured([encoded(noise(seed)) for seed in range(4)], detector)
    assert [row["text_area_frac"] for row in rows] == [0.0] * 4
    assert [row["text_boxes"] for row in rows] == [[]] * 4


def test_faults_are_reasons_and_leave_their_neighbours_alone(detector: Any) -> None:
    rows = measured([None, b"<html>", encoded(noise(0)), encoded(noise(0, 8, 8))], detector)
    assert [row["reason"] for row in rows] == [
        "error.score.text_regions.no_image",
        "error.score.text_regions.decode",
        None,
        None,
    ]
    assert rows[0]["text_area_frac"] is None
    assert rows[1]["text_boxes"] is None
    assert (
        rows[3]["text_area_frac"] == 0.0
    )  # too small for the detector's grid: no text can be read in it


def test_boxes_too_large_or_too_thick_for_a_line_are_not_accepted() -> None:
    def box(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]

    found = SimpleNamespace(
        boxes=np.array(
            [box(10, 10, 90, 20), box(0, 0, 80, 60), box(10, 40, 30, 80), box(60, 30, 70, 90)]
        ),
        scores=[0.9, 0.8, 0.7, 0.6],
    )
    picture = encoded(np.zeros((100, 100, 3), np.uint8))
    (row,) = measured([picture], lambda _: found)
    assert [round(b["confidence"], 1) for b in row["text_boxes"]] == [
        0.9,
        0.7,
        0.6,
    ]  # 48 % of the image is no text
    assert row["text_area_frac"] == pytest.approx(0.08 + 0.08 + 0.06)
    (row,) = measured([picture], lambda _: found, max_box_thickness_frac=0.15)
    assert [round(b["confidence"], 1) for b in row["text_boxes"]] == [0.9, 0.6]
    (row,) = measured([picture], lambda _: found, max_box_area_frac=1.0, max_box_thickness_frac=1.0)
    assert len(row["text_boxes"]) == 4


def test_overlaps_count_once_and_edges_cut() -> None:
    square = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]])
    assert union_area(square[None]) == pytest.approx(0.25)
    assert union_area(np.stack([square, square])) == pytest.approx(0.25)
    assert union_area(np.stack([square, square + np.array([0.25, 0.0])])) == pytest.approx(0.375)
    assert union_area(np.stack([square + 0.75])) == pytest.approx(0.0625)
    tilted = np.array([[0.5, 0.25], [0.75, 0.5], [0.5, 0.75], [0.25, 0.5]])
    assert union_area(tilted[None]) == pytest.approx(0.125)
    assert union_area(np.zeros((0, 4, 2))) == 0.0


@pytest.mark.parametrize(
    "options", [{"limit_side_len": 16}, {"max_box_area_frac": 2.0}, {"box_threshold": -0.1}]
)
def test_impossible_options_are_refused_with_a_hint(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hint: "):
        TextRegions(**options).check()


def test_the_model_is_an_input_and_the_stage_is_silent(tmp_path: Path) -> None:
    (model,) = TextRegions().inputs()
    assert Path(model).stat().st_size > 1_000_000
    code = "from curate.score.text_regions import TextRegions; import numpy; TextRegions().open()(numpy.zeros((64, 64, 3), 'uint8'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_real_photographs_with_and_without_text(detector: Any) -> None:
    photos = [
        data
        for name, data in sorted(tar_files(shared_data("textfree-photos.tar")).items())
        if name.endswith((".jpg", ".png"))
    ]
    free = measured(photos[:8], detector)
    assert all(row["text_area_frac"] < 0.01 for row in free)
    files = tar_files(shared_data("scenetext-overlay-synth.tar"))
    (listed,) = (data for name, data in files.items() if name.endswith("boxes.json"))
    memes = [
        entry["file"]
        for entry in json.loads(listed)
        if entry["style"] in ("meme", "banner", "typographic")
    ][:9]
    found = measured([files[name] for name in memes], detector)
    assert all(row["text_area_frac"] > 0.01 for row in found)
