"""A run is told to stop by a file, on disk at once and behind a URL soon, and by none that another run left."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from curate.contract import storage
from pipelines import stop_file
from pipelines.stop_file import StopFile


def test_on_disk_it_is_there_at_once(tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    driver, asked = StopFile(out), stop_file.watched(out)
    driver.clear()
    assert not asked()
    driver.write()
    assert asked()
    driver.clear()
    assert not asked()


def test_behind_a_url_nothing_waits_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_file, "_LOOK_EVERY_S", 0.01)
    real, failed = storage.exists, [True]

    def exists(path: str) -> bool:
        if failed:
            failed.pop()
            raise OSError("503")
        return real(path)

    out = f"memory://stop-{uuid.uuid4().hex}/run"
    driver, asked = StopFile(out), stop_file.watched(out)
    driver.clear()
    monkeypatch.setattr(storage, "exists", exists)
    assert not asked()
    driver.write()
    until = time.monotonic() + 60
    while not asked():
        assert time.monotonic() < until
        time.sleep(0.01)
    driver.clear()
    assert not real(driver.path)
