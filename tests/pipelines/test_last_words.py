"""In a Ray job every end but a good one leaves its exit code and error as the last line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import last_words

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}


def ended(*arguments: str, **variables: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        capture_output=True, text=True, timeout=100, env={**os.environ, **variables},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()


def test_an_error_of_ours_is_the_last_line_in_a_job() -> None:
    code, lines = ended("check", "nope", **JOB)
    assert (code, lines[-1]) == (2, "clip-pipe: exit code 2: nope: no such recipe file")
    assert lines[0].startswith("error: nope: no such recipe file")


def test_usage_is_told_too() -> None:
    code, lines = ended("check", "nope", "--bogus", **JOB)
    assert (code, lines[-1]) == (2, "clip-pipe: exit code 2: No such option '--bogus'.")


def test_outside_of_jobs_nothing_is_added() -> None:
    code, lines = ended("check", "nope")
    assert code == 2
    assert lines[-1].startswith("hint: ")


def test_a_fault_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError) as fault:
        raise ZeroDivisionError("by nothing")
    assert last_words.tell(fault.value) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "clip-pipe: exit code 1: by nothing"


def test_a_good_end_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert last_words.tell(SystemExit(0)) == 0
    assert last_words.tell(SystemExit(None)) == 0
    assert capsys.readouterr().err == ""
    assert last_words.tell(SystemExit(1)) == 1
    assert capsys.readouterr().err == "clip-pipe: exit code 1: see above\n"
