"""The operator's commands as they are typed: exit codes, what is asked, what goes to stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

import cli
from tests.tiny import whole_run


def typed(*words: str) -> Any:
    return CliRunner().invoke(cli.main, list(words))


def test_the_journey_of_an_operator(tmp_path: Path) -> None:
    whole_run.make(tmp_path, name="old", shards=str(tmp_path / "old"))
    whole_run.make(tmp_path, stages=[{**whole_run.STAGES[0], "plus": 3}, *whole_run.STAGES[1:]])
    pool, shards = str(tmp_path / "pool"), tmp_path / "shards"
    assert json.loads(typed("status", pool, "--json").stdout)["pool"]["state"] == "finished"
    assert "finished" in typed("status", str(tmp_path / "whole.toml")).stdout
    assert typed("verify", pool, "--quick").exit_code == 0
    listed = typed("gc", pool, "--dry-run")
    assert (listed.exit_code, "3 of 4 would go" in listed.stdout) == (0, True)
    unasked = typed("gc", pool)
    assert (unasked.exit_code, "--yes" in unasked.stderr) == (2, True)
    gone = typed("gc", pool, "--yes", "--json")
    assert json.loads(gone.stdout)["removed"]
    (shards / "00000.tar").unlink()
    broken = typed("verify", str(shards), "--json")
    assert (broken.exit_code, json.loads(broken.stdout)["fine"]) == (1, False)


def test_what_is_not_there(tmp_path: Path) -> None:
    for command in ("status", "gc", "verify"):
        found = typed(command, str(tmp_path))
        assert (found.exit_code, "hint:" in found.stderr) == (2, True), command
