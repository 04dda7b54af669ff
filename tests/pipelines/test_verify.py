"""The command's words and exit code; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines import lease, verify
from pipelines.errors import RecipeError


def test_faults_come_with_what_to_do_and_the_sums(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text('{"00000.tar": 3, "00001.tar": 3}')
    text, fine = verify.told(str(tmp_path), quick=False, as_json=False)
    assert not fine
    lines = text.splitlines()
    assert lines[0].endswith("00000.tar: shard 00000.tar: is not there, and sizes.json names it")
    assert lines[2].startswith("hint (2 of them): ")
    assert lines[3].startswith(f"shards {tmp_path}: 2 faults")


def test_json_has_every_fault(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text('{"00000.tar": 3}')
    text, fine = verify.told(str(tmp_path), quick=True, as_json=True)
    told = json.loads(text)
    assert (fine, told["fine"], told["kind"], told["quick"], told["schema"]) == (
        False,
        False,
        "shards",
        True,
        1,
    )
    assert set(told["faults"][0]) == {"file", "at", "what", "hint"}


def test_very_many_faults_are_cut_short_in_words(tmp_path: Path) -> None:
    sizes = {f"{n:05d}.tar": 1 for n in range(80)}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    text, _ = verify.told(str(tmp_path), quick=False, as_json=False)
    assert "and 30 more (--json has 80)" in text


def test_a_run_at_work_is_noted(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text("{}")
    with lease.held((str(tmp_path),)):
        assert "a run is at work here" in verify.check(str(tmp_path))["notes"][0]


def test_folders_of_neither_kind(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="neither a pool nor shards"):
        verify.check(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RecipeError, match="checkpoint verify"):
        verify.check(str(tmp_path))
