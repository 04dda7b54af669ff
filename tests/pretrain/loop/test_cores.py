"""Cores are those that may be used: no more than the machine has, no more than the control group gives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretrain.loop import cores


@pytest.mark.parametrize(
    ("quota", "most"), [("150000 100000", 2), ("10000 100000", 1), ("max 100000", 9999)]
)
def test_a_quota_counts(
    quota: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert cores.cores() == min(16, most)


def test_without_a_control_group() -> None:
    assert 1 <= cores.cores() <= (os.cpu_count() or 1)
