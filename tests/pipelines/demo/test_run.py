"""The demo at its smallest: every part of the journey, through the real Ray, and again without doing it twice."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.demo import run, world
from pipelines.errors import RecipeError

pytestmark = [pytest.mark.ray, pytest.mark.net]


def test_the_whole_journey(
    tmp_path: Path, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    run.demo(str(out), rows=240, samples=256)
    told = capsys.readouterr().out
    for word in (
        "rows in 240",
        "planted faults",
        "text-parrot",
        "dead-link",
        "zero-shot, attacked",
        "retrieval",
        "one seed each",
        f"report: {out}/report.html",
    ):
        assert word in told
    for name in run.RUNS:
        ledger = pq.read_table(out / name / "shards" / "ledger.parquet")
        assert len(ledger) == 240
        assert list((out / name / "shards").glob("*.tar"))
        evaluations = [
            json.loads(line)
            for line in (out / name / "train" / "metrics.jsonl").read_text().splitlines()
            if "eval" in line
        ]
        assert {line["eval"] for line in evaluations if "eval" in line} == {
            "zero-shot",
            "zero-shot, attacked",
            "retrieval",
        }
        assert (out / name / "train" / "report.html").is_file()
    captions = pq.read_table(
        next((out / "pool" / "columns").glob("caption.llm_rewrite-*/part-00000.parquet"))
    )
    assert any(captions["captions"].to_pylist())
    page = (out / "report.html").read_text()
    assert "text-parrot" in page
    assert "<script" not in page
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    run.demo(str(out), rows=240, samples=256)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == before
    with pytest.raises(RecipeError, match="holds a demo of 240 rows with seed 0"):
        run.demo(str(out), rows=241)


def test_too_small_a_world(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="hint: the smallest world"):
        run.demo(str(tmp_path / "demo"), rows=world.MIN_ROWS - 1)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        folder = tmp_path / "demo" / "world"
        folder.mkdir(parents=True)
        (folder / "world.json").write_text(
            json.dumps({"rows": world.MIN_ROWS, "seed": 0, "port": port})
        )
        with pytest.raises(
            RecipeError, match=f"port {port}, which the folder's URLs name, is taken"
        ):
            run.demo(str(tmp_path / "demo"), rows=world.MIN_ROWS)
