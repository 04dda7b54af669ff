"""What a stage reads is provided above it, and what it stands on is that and whoever refuses rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curate.contract import storage
from curate.source.url_table import UrlTable
from pipelines import providers
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from tests.tiny.stages import USE

SOURCE = {"use": f"{USE}:Numbers"}


def test_a_stage_stands_on_deciders_and_on_what_it_reads(curate_recipe: Callable[..., Any]) -> None:
    stages = [
        {"use": f"{USE}:Length"},
        {"use": f"{USE}:Length2"},
        {"use": f"{USE}:Common"},
        {"use": "filter.threshold", "column": "length", "at_least": 2},
    ]
    plan = plan_curation(curate_recipe(SOURCE, stages))
    above = (plan.source, *plan.stages)
    names = [planned.name for planned in plan.stages]
    assert names[0] == "filter.duplicate_pair"
    # Length2 is stood on by Common alone, which must see every row that lives.
    assert providers.stands_on(("length",), above[:4], everything=False) == (-1, 0, 1)
    assert plan.stages[3].upstream == (-1, 0, 1, 2)
    assert plan.stages[4].upstream == (-1, 0, 1, 2, 3)


def test_what_values_hang_on_leaves_refusals_out(curate_recipe: Callable[..., Any]) -> None:
    stages = [{"use": f"{USE}:Common"}, {"use": f"{USE}:Picture"}, {"use": f"{USE}:PictureSize"}]
    found = [
        plan_curation(curate_recipe(SOURCE, [{**stages[0], "most": most}, *stages[1:]]))
        for most in (3, 4)
    ]
    for index in (2, 3):
        assert found[0].stages[index].measure == found[1].stages[index].measure
        assert found[0].stages[index].fingerprint != found[1].stages[index].fingerprint
    above = (found[0].source, *found[0].stages[:3])
    measures = providers.measures(("image",), above)
    assert measures == (found[0].source.measure, found[0].stages[2].measure)


def test_a_column_that_nobody_writes_is_said(curate_recipe: Callable[..., Any]) -> None:
    stage = {"use": "filter.threshold", "column": "phash", "equals": "x"}
    with pytest.raises(RecipeError, match=r"(?s)'phash', which nothing above.*score\.phash"):
        plan_curation(curate_recipe(SOURCE, [stage]))


def test_a_file_is_known_by_its_content_and_a_large_one_by_its_ends(tmp_path: Path) -> None:
    small, copy = tmp_path / "a", tmp_path / "b"
    small.write_bytes(b"x" * 1000)
    copy.write_bytes(b"x" * 1000)
    assert providers.identity(str(small), 1000) == providers.identity(str(copy), 1000)
    whole = providers.identity(str(small), 1000)
    copy.write_bytes(b"x" * 999 + b"y")
    assert providers.identity(str(copy), 1000) != whole
    with pytest.raises(ValueError, match="no such file"):
        providers.identity(str(tmp_path / "c"), 1000)


def test_a_remote_file_that_has_a_version_is_known_by_it_and_not_read(tmp_path: Path) -> None:
    large = 3 << 20
    one = providers.identity("s3://nowhere/a.parquet", 64 << 20, (large, "etag-1"))
    assert one == providers.identity("s3://elsewhere/b.parquet", 64 << 20, (large, "etag-1"))
    assert one != providers.identity("s3://nowhere/a.parquet", 64 << 20, (large, "etag-2"))
    assert one != providers.identity("s3://nowhere/a.parquet", 64 << 20, (large + 1, "etag-1"))
    # A file on disk, a small one and one without a version are read.
    here = tmp_path / "a"
    here.write_bytes(b"x" * large)
    whole = providers.identity(str(here), 64 << 20)
    assert providers.identity(str(here), 64 << 20, (large, "etag-1")) == whole
    MemoryFileSystem().pipe("/providers/a", here.read_bytes())
    try:
        for mark in ((large, ""), (100, "etag-1"), None):
            assert providers.identity("memory://providers/a", 64 << 20, mark) == whole
    finally:
        MemoryFileSystem().rm("/providers", recursive=True)


def test_files_of_a_bucket_are_known_by_one_listing(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        storage.write_text(f"{bucket}/many/{number}.csv", "x" * ((1 << 20) + number))
    stage = UrlTable(path=f"{bucket}/many")
    files = stage.inputs()
    assert len(files) == 10

    def refused(*_: object) -> None:
        raise AssertionError("asked for one file")

    listings: list[str] = []
    marks = storage.marks
    monkeypatch.setattr(storage, "marks", lambda folder: listings.append(folder) or marks(folder))
    for name in ("mark", "size_bytes", "open_file"):
        monkeypatch.setattr(storage, name, refused)
    assert stage.sizes_bytes() == {path: (1 << 20) + n for n, path in enumerate(files)}
    versions = stage.versions()
    kept = [providers.identity(path, 64 << 20, versions[path]) for path in files[1:]]
    assert len(set(kept)) == 9
    assert listings == [f"{bucket}/many"]
