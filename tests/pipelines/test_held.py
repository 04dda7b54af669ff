"""A plan over a pool is that of the run that made it, with the source's files there or gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import curation, held, recipe
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.tiny.pictures import encoded, quadrants


def made(folder: Path, source: dict[str, Any]) -> Any:
    curate = {name: str(folder / name) for name in ("pool", "shards")}
    data = {"name": "held", "curate": {**curate, "source": source}}
    return recipe.from_data(data, "test.toml")


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    """A recipe over one file with columns of its own, and its pool."""
    (tmp_path / "in").mkdir()
    columns = {"url": ["u1", "u2"], "caption": ["a", "b"], "n": [1, 2], "tongue": ["en", "de"]}
    pq.write_table(pa.table(columns), tmp_path / "in" / "a.parquet")
    source = {"use": "source.url_table", "path": str(tmp_path / "in"), "keep_columns": ["n", "tongue"]}  # fmt: skip
    return made(tmp_path, source)


@pytest.fixture
def pictures(tmp_path: Path) -> Any:
    """A recipe over a folder of pictures."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(encoded(quadrants(40, 40), "JPEG"))
    (tmp_path / "in" / "a.txt").write_text("a caption")
    return made(tmp_path, {"use": "source.folder", "path": str(tmp_path / "in")})


@pytest.mark.parametrize("which", ["rows", "pictures"])
def test_the_plan_is_that_of_the_run(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    loaded = request.getfixturevalue(which)
    wanted = plan_curation(loaded)
    curation.measure(wanted, LocalRunner(), Quiet())
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    found = held.plan_of_pool(loaded)
    assert [p.fingerprint for p in found.stages] == [p.fingerprint for p in wanted.stages]
    assert [p.measure for p in found.stages] == [p.measure for p in wanted.stages]
    assert found.shard.fingerprint == wanted.shard.fingerprint
    assert found.source.schema == wanted.source.schema
    for name in ("fingerprint", "measure", "options", "columns", "makes_images", "decides"):
        assert getattr(found.source, name) == getattr(wanted.source, name)
    assert (found.source_content, held.unread_files(loaded)) == (wanted.source_content, 0)


def test_new_files_are_counted(rows: Any, tmp_path: Path) -> None:
    curation.measure(plan_curation(rows), LocalRunner(), Quiet())
    assert held.unread_files(rows) == 0
    for name in ("b", "c"):
        (tmp_path / "in" / f"{name}.parquet").write_bytes((tmp_path / "in" / "a.parquet").read_bytes())  # fmt: skip
    assert held.unread_files(rows) == 2


def test_what_is_no_pool_is_said(rows: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no pool\\nhint: run"):
        held.plan_of_pool(rows)
    (tmp_path / "pool").mkdir()
    for text, what in (("{", "can't be read as JSON"), (json.dumps({"parts": 1}), "no source")):
        (tmp_path / "pool" / "pool.json").write_text(text)
        with pytest.raises(RecipeError, match=what):
            held.plan_of_pool(rows)
