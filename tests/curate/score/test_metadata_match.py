"""score.metadata_match: rows keep their order in any batch, options are checked, built once per process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curate.contract import parts, storage
from curate.score import metadata_match
from curate.score.metadata_match import Matcher, MetadataMatch, read_entries, tokens
from curate.stage import StageError
from pipelines import curation, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet


def write(folder: Path, entries: list[str], name: str = "entries.json") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(entries))
    return str(folder / name)


def test_ids_are_ascending_and_rows_keep_their_order_for_any_batch(tmp_path: Path) -> None:
    stage = MetadataMatch(entries=write(tmp_path, ["show", "dog", "hot dog", "hot"]))
    stage.check()
    assert stage.reads() == ("caption",)
    batch = pa.table({"uid": ["1", "2", "3"], "caption": ["hot dog show", None, "a dog, a dog"]})
    state = stage.open()
    whole = stage.process(batch, state)
    assert whole.schema == stage.writes()
    assert whole["entries"].to_pylist() == [[0, 1, 2, 3], [], [1]]
    assert pa.concat_tables([stage.process(batch.slice(n, 1), state) for n in range(3)]).equals(
        whole
    )
    assert stage.process(batch.slice(0, 0), state).schema == stage.writes()
    assert stage.inputs() == (stage.entries,)
    assert stage.identity() == ""


def worldwide(folder: Path, **options: Any) -> MetadataMatch:
    write(folder, ["dog", "cat"], "en.json")
    write(folder, ["犬", "カメラ"], "ja.json")
    return MetadataMatch(entries=str(folder), rule="worldwide", **options)


def test_worldwide_matches_the_column_language(tmp_path: Path) -> None:
    stage = worldwide(tmp_path / "lists", fallback="en")
    stage.check()
    assert stage.reads() == ("caption", "language")
    rows = {
        "caption": ["新しいカメラ", "新しいカメラ", "a dog", "a dog", None],
        "language": ["ja", "en", "xx", None, "ja"],
    }
    batch, state = pa.table(rows), stage.open()
    whole = stage.process(batch, state)
    assert whole.schema == stage.writes()
    assert whole["entries"].to_pylist() == [[1], [], [0], [0], []]
    assert pa.concat_tables([stage.process(batch.slice(n, 1), state) for n in range(5)]).equals(
        whole
    )


def test_which_language_a_list_is_of_counts_and_where_it_lies_does_not(tmp_path: Path) -> None:
    here, there = worldwide(tmp_path / "a"), worldwide(tmp_path / "b")
    assert [storage.read_text(path) for path in here.inputs()] == [
        storage.read_text(path) for path in there.inputs()
    ]
    assert here.identity() == there.identity() == "en ja"
    (tmp_path / "b" / "ja.json").rename(tmp_path / "b" / "zh.json")
    assert (
        worldwide(tmp_path / "a").identity()
        != MetadataMatch(entries=there.entries, rule="worldwide").identity()
    )


def test_options_that_can_not_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"entries is empty\. hint: "):
        MetadataMatch(entries="").check()
    with pytest.raises(ValueError, match=r"no such file\. hint: "):
        MetadataMatch(entries=str(tmp_path / "none.json")).check()
    with pytest.raises(ValueError, match=r"'en' without languages\. hint: .*worldwide"):
        MetadataMatch(entries=write(tmp_path, ["a"]), fallback="en").check()
    lists = tmp_path / "lists"
    with pytest.raises(ValueError, match=r"fallback = 'de', and .* no such list\. hint: it has en"):
        worldwide(lists, fallback="de").check()
    with pytest.raises(ValueError, match=r"it is a folder\. hint: .*\"worldwide\""):
        MetadataMatch(entries=str(lists)).check()
    with pytest.raises(ValueError, match=r"no such folder\. hint: "):
        MetadataMatch(entries=str(tmp_path / "none"), rule="worldwide").check()
    write(lists, [], "de.json")
    with pytest.raises(ValueError, match=r"de\.json: holds no entry"):
        worldwide(lists).check()


def test_a_list_that_goes_after_the_plan_stops_the_run(tmp_path: Path) -> None:
    stage = MetadataMatch(entries=write(tmp_path, ["dog"]))
    stage.check()
    Path(stage.entries).unlink()
    with pytest.raises(StageError, match=r"entries\.json: no such file\. hint: "):
        stage.open()
    stage = worldwide(tmp_path / "lists")
    stage.check()
    for path in stage.inputs():
        Path(path).unlink()
    with pytest.raises(StageError, match=r"no list in it\. hint: "):
        stage.open()


def test_a_list_behind_fsspec() -> None:
    with storage.open_file("memory://lists/entries.txt", "wb") as file:
        file.write(b"dog\nhot dog\n")
    stage = MetadataMatch(entries="memory://lists/entries.txt")
    stage.check()
    done = stage.process(pa.table({"caption": ["hot dog"]}), stage.open())
    assert done["entries"].to_pylist() == [[0, 1]]


def test_a_process_builds_one_matcher_for_all_its_parts(
    curate_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    class Counted(Matcher):
        def __init__(self, entries: list[str]) -> None:
            built.append(len(entries))
            super().__init__(entries)

    monkeypatch.setattr(metadata_match, "Matcher", Counted)
    monkeypatch.setattr(MetadataMatch, "batch_rows", 3)
    entries = write(tmp_path, ["number", "word0", "once per process"])
    source = {"use": "tests.tiny.stages:Numbers", "count": 60, "rows_per_part": 10}
    plan = plan_curation(
        curate_recipe(source, [{"use": "score.metadata_match", "entries": entries}])
    )
    curation.run(plan, LocalRunner(), Quiet())
    planned = next(stage for stage in plan.stages if stage.use == "score.metadata_match")
    tables = [parts.read_table(part.sidecar(plan, planned, number)) for number in range(6)]
    assert sum(bool(row) for table in tables for row in table["entries"].to_pylist()) == 60
    assert built == [3]


def test_what_others_import_from_here() -> None:
    assert Matcher(["dog show"]).match("a dog show") == [0]
    assert tokens("a,b") == ["a", ",", "b"]
    assert callable(read_entries)
