"""The world: deterministic, planted in known shares, true tables, nothing given away to curation."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate.contract.draw import pair_uid
from pipelines.demo import world as demo_world
from pipelines.demo.render import jpeg
from pipelines.demo.scene import COLOURS, SHAPES
from pipelines.demo.world import (
    PLANTED_SHARES,
    World,
    build,
    planted_counts,
    source_table,
    truth_table,
    write,
)

BASE = "http://127.0.0.1:8000"
ROWS = 2_000


@pytest.fixture(scope="module")
def world() -> World:
    return build(0, ROWS)


def test_same_seed_same_world(world: World):
    assert build(0, ROWS) == world
    assert build(1, ROWS).rows != world.rows


def test_every_fault_is_planted_as_often_as_said(world: World):
    counts = Counter(row.fault for row in world.rows)
    assert len(world.rows) == ROWS
    assert {fault: counts[fault] for fault in PLANTED_SHARES} == planted_counts(ROWS)
    assert counts[""] == ROWS - sum(planted_counts(ROWS).values())
    text = counts["text-parrot"] + counts["text-unrelated"]
    assert 0.25 <= text / ROWS <= 0.3


def test_default_size_has_few_slow_links():
    assert planted_counts(demo_world.DEFAULT_ROWS)["slow-link"] <= 4


def test_too_small_a_world_is_refused():
    with pytest.raises(ValueError, match="hint: the smallest world has 100"):
        build(0, 99)
    assert set(PLANTED_SHARES) <= {row.fault for row in build(0, 100).rows}


def test_labels_are_long_tailed(world: World):
    counts = Counter(row.scene.label for row in world.rows)
    assert counts["red circle"] > 0.09 * ROWS
    rare = [f"{colour} {shape}" for colour in COLOURS[-3:] for shape in SHAPES[-3:]]
    assert np.mean([counts[label] for label in rare]) < 0.01 * ROWS


def test_faults_are_spread_over_the_source(world: World):
    for fault in ("text-parrot", "dead-link", "junk-caption", "duplicate-image"):
        first_half = sum(row.fault == fault for row in world.rows[: ROWS // 2])
        assert 0.25 < first_half / planted_counts(ROWS)[fault] < 0.9


def test_duplicates_repeat_an_earlier_clean_row(world: World):
    for position, row in enumerate(world.rows):
        if not row.fault.startswith("duplicate"):
            assert row.first_row == -1
            continue
        first = world.rows[row.first_row]
        assert row.first_row < position
        assert first.fault == ""
        assert row.path is not None
        assert first.path is not None
        same_pair = (row.path, row.caption) == (first.path, first.caption)
        assert same_pair == (row.fault == "duplicate-pair")
        assert world.assets[row.path].picture == world.assets[first.path].picture


def test_only_planted_duplicates_are_equal(world: World):
    pairs = Counter((row.path, row.caption) for row in world.rows)
    assert sum(count - 1 for count in pairs.values()) == planted_counts(ROWS)["duplicate-pair"]
    sample = list(world.assets.values())[:150] + list(world.assets.values())[-20:]
    pictures = Counter(asset.picture for asset in sample)
    hashes = Counter(hashlib.sha256(jpeg(picture)).hexdigest() for picture in pictures)
    assert max(hashes.values()) == 1


def test_bad_rows_are_what_they_are_called(world: World):
    of = {row.fault: row for row in world.rows}
    assert of["null-url"].path is None
    assert of["null-caption"].caption is None
    assert len(of["huge-caption"].caption or b"") == demo_world.HUGE_CAPTION_BYTES
    with pytest.raises(UnicodeDecodeError):
        (of["not-utf8-caption"].caption or b"").decode()
    answers = {
        fault: world.assets[of[fault].path or ""].answer
        for fault in ("dead-link", "slow-link", "html-as-jpeg", "truncated-jpeg", "")
    }
    assert answers == {
        "dead-link": "missing",
        "slow-link": "slow",
        "html-as-jpeg": "html",
        "truncated-jpeg": "truncated",
        "": "image",
    }


def test_text_is_written_on_planted_pictures_only(world: World):
    posters = 0
    for row in world.rows:
        if row.path is None:
            continue
        picture = world.assets[row.path].picture
        assert (picture.lettering is not None) == row.fault.startswith("text-")
        assert not picture.poster or row.fault == "text-parrot"
        posters += picture.poster
        if row.fault == "text-parrot" and picture.lettering is not None:
            assert row.scene.things[0].colour in " ".join(picture.lettering.lines).lower()
    assert 0.2 < posters / planted_counts(ROWS)["text-parrot"] < 0.4


def test_wrong_captions_describe_another_scene(world: World):
    for row in world.rows:
        if row.fault == "wrong-caption":
            words = (row.caption or b"").decode().lower().replace(",", " ").split()
            assert " ".join(row.scene.label.split()) not in " ".join(words[:3])
    clean = [row for row in world.rows if not row.fault]
    named = sum(row.scene.things[0].shape in (row.caption or b"").decode().lower() for row in clean)
    assert named == len(clean)


def test_tables_hold_every_row_and_the_contract_uid(world: World):
    source, truth = source_table(world, BASE), truth_table(world, BASE)
    assert source.num_rows == truth.num_rows == ROWS
    assert source.column_names == ["url", "caption"], "nothing of the truth is visible to curation"
    for place in (0, 17, ROWS - 1):
        url, caption = source["url"][place].as_py(), source["caption"][place].as_py()
        assert truth["uid"][place].as_py() == pair_uid(url, caption)
        assert truth["row"][place].as_py() == place
    urls = {url for url in source["url"].to_pylist() if url}
    assert {url.removeprefix(BASE) for url in urls} <= set(world.assets)
    assert all(re.fullmatch(BASE + r"/photos/[0-9a-f]{16}\.jpg", url) for url in urls), (
        "no hint in a name"
    )


def test_write_commits_three_files_and_the_same_bytes(world: World, tmp_path):
    for name in ("a", "b"):
        write(world, BASE, str(tmp_path / name))
    names = ["entries.txt", "source.parquet", "truth.parquet"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert pq.read_table(tmp_path / "a" / "source.parquet").equals(source_table(world, BASE))
    assert pq.ParquetFile(tmp_path / "a" / "source.parquet").num_row_groups == 2
