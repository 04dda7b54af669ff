"""What is found in a run's folder: changes refused, allowed, noted once; phases that are gone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.loop import checkpoint, resume
from pretrain.loop.log import MetricsLog

NOW = resume.Now({"phase.0.lr": 1.0, "seed": 0}, "content", "manifest", 2)


def saved(**change: Any) -> dict[str, Any]:
    return {
        "optimizer": {}, "settings": dict(NOW.settings), "data_sha256": "content", "data_hash": "manifest",
        "cursor": {"samples_seen": 64, "phase": 1}, **change,
    }  # fmt: skip


def test_nothing_changed() -> None:
    assert resume.allowed_changes(saved(), NOW, "p", []) == ({}, [])
    assert resume.allowed_changes(saved(), NOW, "p", ["seed"]) == ({}, ["seed"])
    unknown = dataclasses.replace(NOW, data_hash="")  # where no manifest was found
    assert resume.allowed_changes(saved(), unknown, "p", []) == ({}, [])


def test_a_change_is_refused_with_the_key_that_allows_it() -> None:
    other = saved(settings={"phase.0.lr": 2.0, "seed": 0}, data_sha256="x")
    with pytest.raises(ValueError, match="p cannot be resumed: ") as fault:
        resume.allowed_changes(other, NOW, "p", ["phase.0"])
    assert "phase.0.lr" not in str(fault.value)
    assert "data: the content of shards or sidecars is not" in str(fault.value)
    assert str(fault.value).endswith(
        "hint: undo the change, train into another folder, or go on with it by --allow-change data"
    )
    fine, idle = resume.allowed_changes(other, NOW, "p", ["phase.0", "data"])
    assert fine["phase.0.lr"] == "checkpoint has 2.0, now 1.0"
    assert (sorted(fine), idle) == (["data", "phase.0.lr"], [])


def test_another_manifest_is_data_too() -> None:
    with pytest.raises(ValueError, match="data: checkpoint has manifest m, now manifest"):
        resume.allowed_changes(saved(data_hash="m"), NOW, "p", [])


def test_a_phase_that_was_begun_may_not_go() -> None:
    fewer = dataclasses.replace(NOW, phases=1)
    with pytest.raises(ValueError, match=r"stands in phase 1, and there are 1 phases now. hint:"):
        resume.allowed_changes(saved(), fewer, "p", ["phase"])


def test_history_grows_by_what_was_allowed() -> None:
    first = resume.history(saved(), {"a": "b"})
    assert first == [{"samples_seen": 64, "changed": {"a": "b"}}]
    assert resume.history(saved(history=first), {}) == first
    assert len(resume.history(saved(history=first), {"c": "d"})) == 2


def test_a_note_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"samples_seen": 64}\n')
    note = {"samples_seen": 64, "changed": {"a": "b"}}
    for _ in range(2):  # the second time after a kill, before any checkpoint
        resume.note(MetricsLog(str(tmp_path / "metrics.jsonl")), note, "# new\n")
        with (tmp_path / "metrics.jsonl").open("a") as file:  # an evaluation in between
            file.write('{"samples_seen": 64, "eval": "a"}\n')
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "changed" in line] == [note]
    assert (tmp_path / "recipe.toml").read_text() == "# new\n"


def test_folders(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    assert resume.prepare_folder(out, False, "# recipe\n") == ""
    assert (tmp_path / "run" / "recipe.toml").read_text() == "# recipe\n"
    path = checkpoint.save(out, {"cursor": {"samples_seen": 8}}, keep=1)
    with pytest.raises(ValueError, match=r"already holds a run .checkpoints.. hint: go on"):
        resume.prepare_folder(out, False, "")
    (tmp_path / "run" / "checkpoints" / "samples-000000000016.pt.tmp-1").touch()
    assert resume.prepare_folder(out, True, "# other\n") == path
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp-*"))
    assert (tmp_path / "run" / "recipe.toml").read_text() == "# recipe\n"


def test_weights_without_an_optimizer_are_no_run(tmp_path: Path) -> None:
    average = saved()
    del average["optimizer"]
    with pytest.raises(ValueError, match=r"holds weights only, no optimizer: an average\? hint:"):
        resume.allowed_changes(average, NOW, "p", [])


def test_what_an_attempt_wrote_before_its_first_checkpoint_is_kept(tmp_path: Path) -> None:
    out = str(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    for attempt in (1, 2):
        metrics.write_text(f'{{"samples_seen": {attempt}}}\n')
        assert resume.prepare_folder(out, True, f"# recipe {attempt}\n") == ""
        assert not metrics.exists()
        assert (
            tmp_path / f"metrics.jsonl.before-{attempt}"
        ).read_text() == f'{{"samples_seen": {attempt}}}\n'
    assert (tmp_path / "recipe.toml").read_text() == "# recipe 2\n"
    assert (tmp_path / "recipe.toml.before-1").read_text() == "# recipe 1\n"


def test_a_run_whose_stamps_are_gone_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = checkpoint.save(str(tmp_path), {"cursor": {"samples_seen": 8}}, keep=1)
    Path(checkpoint.stamp_path(path)).unlink()
    (tmp_path / "metrics.jsonl").write_text('{"samples_seen": 8}\n')
    (tmp_path / "recipe.toml").write_text("# old\n")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"no stamp .*hint: bring back"):
        resume.prepare_folder(str(tmp_path), True, "# new\n")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
