"""Thumbnails' pictures: kept ones from the shards, refused ones the newest from the pool."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from curate.contract import parts
from curate.contract.parts import Pool
from pipelines.report import ledger, pictures
from tests.tiny import finished_run
from tests.tiny.encoders import COLOURS

IMAGES = [
    finished_run.FINGERPRINTS[finished_run.FETCH],
    finished_run.FINGERPRINTS[finished_run.EDIT],
]


def colour(image: bytes | None) -> str | None:
    if image is None:
        return None
    pixel = Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))
    return next(name for name, rgb in COLOURS.items() if tuple(255 * c for c in rgb) == pixel)


def test_the_first_kept_samples_with_their_words(tmp_path: Path) -> None:
    shards_root, _ = finished_run.make(tmp_path)
    thumbs = pictures.kept(shards_root, 4)
    assert [thumb.uid for thumb in thumbs] == [finished_run.uid(row) for row in (0, 1, 9, 11)]
    assert [colour(thumb.image) for thumb in thumbs] == ["red", "green", "cyan", "purple"]
    assert thumbs[0].caption == finished_run.HOSTILE
    assert thumbs[1].captions == ["rewrite of 1"]
    assert thumbs[1].note == "http://pictures.example/1.jpg"
    assert len(pictures.kept(shards_root, 2)) == 2


def test_a_text_only_run_shows_words(tmp_path: Path) -> None:
    shards_root, _ = finished_run.make(tmp_path, text_only=True)
    thumbs = pictures.kept(shards_root)
    assert [thumb.uid for thumb in thumbs] == [finished_run.uid(row) for row in (0, 1, 9, 11)]
    assert {thumb.image for thumb in thumbs} == {None}


def test_refused_rows_find_their_newest_picture_in_their_part(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    samples = ledger.summarize(f"{shards_root}/ledger.parquet").samples
    found = pictures.refused(Pool(pool_root), IMAGES, samples)
    assert found.keys() == samples.keys()
    by_row = {
        int(thumb.uid, 16): colour(thumb.image) for thumbs in found.values() for thumb in thumbs
    }
    # Row 8 was white as fetched and is yellow as edited; the rest never had a picture.
    assert by_row == {
        2: None,
        3: None,
        4: None,
        5: None,
        6: None,
        7: "blue",
        8: "yellow",
        10: None,
        12: None,
    }


@pytest.mark.parametrize("missing", ["pool", "images", "tar"])
def test_what_is_not_there_costs_only_the_pictures(tmp_path: Path, missing: str) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    samples = ledger.summarize(f"{shards_root}/ledger.parquet").samples
    pool = None if missing == "pool" else Pool(pool_root)
    if missing == "tar":
        for path in Path(pool_root, "images").rglob("*.tar"):
            path.write_bytes(b"not a tar" * 100)
    found = pictures.refused(pool, [] if missing == "images" else IMAGES, samples)
    assert {thumb.image for thumbs in found.values() for thumb in thumbs} == {None}
    assert len(found[finished_run.TEXT]) == 2


def test_a_folder_without_shards_has_no_samples(tmp_path: Path) -> None:
    assert pictures.kept(str(tmp_path)) == []


def test_a_copy_comes_with_the_row_that_stays_and_its_picture(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    pool = Pool(pool_root)
    # The threshold's rows 7 and 8 as if it had found them to be copies of row 9, in the other part.
    stage = {
        "use": finished_run.THRESHOLD,
        "fingerprint": finished_run.FINGERPRINTS[finished_run.THRESHOLD],
    }
    first = 0
    for part, size in enumerate(finished_run.PART_SIZES):
        uids = [finished_run.uid(row) for row in range(first, first + size)]
        table = pa.table({"uid": uids, "copy_of": [finished_run.uid(9)] * size})
        parts.write_table(pool.columns_path("filter.threshold", stage["fingerprint"], part), table)
        first += size
    samples = ledger.summarize(f"{shards_root}/ledger.parquet").samples
    found = pictures.refused(pool, IMAGES, samples, [stage])
    assert {colour(thumb.image) for thumb in found[finished_run.TEXT]} == {"blue", "yellow"}
    for thumb in found[finished_run.TEXT]:
        assert thumb.repeats is not None
        assert (thumb.repeats.uid, thumb.repeats.caption) == (finished_run.uid(9), "caption of 9")
        assert colour(thumb.repeats.image) == "cyan"
    assert {thumb.repeats for thumb in found["balanced"]} == {None}
