"""A report from what runs left on disk; what is missing is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from curate.contract import parts
from curate.contract.parts import Pool
from pipelines.report import collect
from pipelines.report.content import KEPT, Balance, BalanceGroup
from tests.tiny import finished_run

ENTRIES = ["red", "green", "blue", "cyan"]


def metrics(folder: Path, *lines: object) -> str:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_curation(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    report = collect.curation_report(shards_root, ENTRIES)
    assert report.totals is not None
    assert (report.totals.rows_in, report.totals.kept, report.totals.ledger_rows) == (13, 4, 13)
    assert [(row.use, row.rows_in, row.kept) for row in report.funnel] == [
        ("source.url_table", 13, 11), ("score.metadata_match", 11, 11), ("filter.metadata_balance", 11, 7),
        ("download.fetch", 7, 6), ("edit.mask_text", 6, 6), ("filter.threshold#2", 6, 4),
    ]  # fmt: skip
    assert list(report.funnel[2].refused.items()) == [("balanced", 3), ("unmatched", 1)]
    assert {reason for row in report.funnel for reason in row.refused} == set(report.totals.reasons)
    assert sum(report.totals.reasons.values()) == 9
    assert report.entries is not None
    assert [(row.text, row.before, row.after) for row in report.entries.head] == [
        ("red", 8, 5),
        ("green", 2, 2),
        ("cyan", 2, 2),
    ]
    assert report.thumbnails.keys() == {KEPT, *report.totals.reasons}
    assert len(report.thumbnails[KEPT]) == 4
    assert [thumb.image is not None for thumb in report.thumbnails[finished_run.TEXT]] == [
        True,
        True,
    ]
    assert report.provenance["pool"] == pool_root
    assert "numpy 2.0" in report.provenance["versions"]
    assert report.notes == []


def test_a_text_only_run(tmp_path: Path) -> None:
    shards_root, _ = finished_run.make(tmp_path, text_only=True)
    report = collect.curation_report(shards_root)
    assert report.entries is not None
    assert report.entries.head[0].text == "entry 0"
    assert {thumb.image for thumbs in report.thumbnails.values() for thumb in thumbs} == {None}


def test_without_its_pool_a_note_says_so(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    shutil.rmtree(pool_root)
    report = collect.curation_report(shards_root, ENTRIES)
    assert report.entries is None
    assert pool_root in report.notes[0]
    assert report.thumbnails[KEPT][0].image is not None
    assert report.thumbnails[finished_run.TEXT][0].image is None


@pytest.mark.parametrize("left", [("score.metadata_match",), ("filter.metadata_balance",)])
def test_no_entries_where_the_run_did_not_balance(tmp_path: Path, left: tuple[str, ...]) -> None:
    shards_root, _ = finished_run.make(tmp_path)
    path = Path(shards_root, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["stages"] = [stage for stage in manifest["stages"] if stage["use"] in left]
    path.write_text(json.dumps(manifest))
    assert collect.curation_report(shards_root).entries is None


def test_training_runs_side_by_side(tmp_path: Path) -> None:
    raw = metrics(tmp_path / "raw", {"samples_seen": 1, "loss": 2.0}, {"eval": "z", "top1": 0.1})
    curated = metrics(tmp_path / "curated", {"samples_seen": 1, "loss": 1.5})
    with open(f"{curated}/metrics.jsonl", "a") as file:
        file.write('{"half')
    report = collect.with_runs(
        collect.curation_report(finished_run.make(tmp_path)[0]), {"raw": raw, "curated": curated}
    )
    assert list(report.curves) == ["raw", "curated"]
    assert report.curves["curated"][0]["loss"] == 1.5
    assert report.evaluations == {"raw": {"z": {"top1": 0.1}}}
    assert "1 lines could not be read" in report.notes[0]
    assert report.totals is not None


def test_one_training_run(tmp_path: Path) -> None:
    out = metrics(tmp_path / "run", {"samples_seen": 1, "loss": 2.0})
    report = collect.training_report(out, "mine")
    assert (report.title, list(report.curves), report.provenance["folder"]) == (
        "Training: mine",
        ["mine"],
        out,
    )


def test_folders_that_are_not_runs_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest.json.*hint: "):
        collect.curation_report(str(tmp_path))
    with pytest.raises(ValueError, match=r"no metrics.jsonl.*hint: "):
        collect.training_report(str(tmp_path), "mine")


def manifest_of(pool_root: str, name: str, **options: object) -> Path:
    folder = Path(
        Pool(pool_root).columns_folder(name.partition("#")[0], finished_run.FINGERPRINTS[name])
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"options": options}))
    return folder


def test_options_and_threshold_of_the_stages(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    bounds = {"column": "text_area_frac", "at_most": 0.05, "at_least": None, "missing": "refuse"}
    manifest_of(pool_root, finished_run.THRESHOLD, **bounds)
    folder = manifest_of(pool_root, finished_run.BALANCE, t=4, seed=3, salt="balance")
    state = {"entry": [0, 1, 3], "count": [8, 2, 2], "group": [None] * 3, "t": [4, 4, 4]}
    types = pa.schema(
        [("entry", pa.int32()), ("count", pa.int64()), ("group", pa.string()), ("t", pa.int64())]
    )
    parts.write_table(str(folder / "state.parquet"), pa.table(state, types))
    report = collect.curation_report(shards_root, ENTRIES)
    told = {row.use: row.options for row in report.funnel}
    assert told["filter.threshold#2"] == 'column = "text_area_frac", at_most = 0.05'
    assert told["filter.metadata_balance"] == "t = 4"
    assert told["download.fetch"] == ""
    assert report.funnel[-1].stage.startswith("filter.threshold-")
    assert report.balance == Balance(
        finished_run.BALANCE,
        [BalanceGroup("", 4, 1, 8, 2, 4)],
        n_groups=1,
        kept=7,
        expected=pytest.approx(7.0),
        sigma=pytest.approx(1.5**0.5),
    )


def test_ids_of_several_lists_are_not_added_up(tmp_path: Path) -> None:
    shards_root, pool_root = finished_run.make(tmp_path)
    fingerprint = finished_run.FINGERPRINTS[finished_run.MATCH]
    folder = Path(Pool(pool_root).columns_folder(finished_run.MATCH, fingerprint))
    (folder / "manifest.json").write_text(json.dumps({"options": {"rule": "worldwide"}}))
    report = collect.curation_report(shards_root, ENTRIES)
    assert report.entries is None
    assert any("by language" in note for note in report.notes)
