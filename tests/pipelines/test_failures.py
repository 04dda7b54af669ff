"""What is noted of parts that failed: written at once, taken out one by one, in words."""

from __future__ import annotations

from pathlib import Path

from pipelines import failures
from pipelines.failures import Failed

DIED = Failed("died", "the worker died", 4, "node-a", "/tmp/w.err", results=2)


def test_a_part_is_noted_until_it_ends(tmp_path: Path) -> None:
    noted = failures.Failures(str(tmp_path))
    noted.note("score.x", 17, DIED)
    noted.note("score.x", 3, DIED)
    told = {"kind": "died", "told": "the worker died", "attempts": 4, "node": "node-a", "log": "/tmp/w.err"}  # fmt: skip
    assert failures.read(str(tmp_path)) == {"score.x": {"parts": {"17": told, "3": told}}}
    again = failures.Failures(str(tmp_path))
    again.ended("score.x", [17, 4])
    again.ended("score.y", [3])
    assert list(failures.read(str(tmp_path))["score.x"]["parts"]) == ["3"]
    again.ended("score.x", [3])
    assert not Path(again.path).exists()


def test_a_run_that_ends_whole_leaves_nothing(tmp_path: Path) -> None:
    noted = failures.Failures(str(tmp_path))
    noted.forget()
    noted.note("score.x", 17, DIED)
    noted.forget()
    assert not Path(noted.path).exists()


def test_what_is_not_ours_is_none(tmp_path: Path) -> None:
    path = Path(failures.Failures(str(tmp_path)).path)
    path.parent.mkdir()
    path.write_text('{"score.x": 3, "score.y": {"parts": []}}')
    assert failures.read(str(tmp_path)) == {}
    path.write_text("{")
    assert failures.read(str(tmp_path)) == {}


def test_the_message_names_parts_and_says_how_many_there_are() -> None:
    told = str(failures.raised("score.x", dict.fromkeys(range(7), DIED), 100, "POOL/work/f.json"))
    assert told.startswith("7 of 100 parts could not be done; all others are (noted in POOL/work/f.json)\n")  # fmt: skip
    assert "part 4 of score.x: its process died in each of 4 attempts on node-a: the worker died; its log there: /tmp/w.err" in told  # fmt: skip
    assert "and 2 more\nhint: the same command tries them again" in told
