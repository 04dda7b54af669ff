"""Pages written into the folders of the runs they are about, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

from pipelines.report import written
from tests.tiny import finished_run


def test_a_curations_page(tmp_path: Path) -> None:
    shards_root, _ = finished_run.make(tmp_path)
    path = written.curation(shards_root, ["red"])
    assert path == f"{shards_root}/report.html"
    page = Path(path).read_text()
    for section in ("funnel", "entries", "samples", "provenance"):
        assert f'id="{section}"' in page
    # 4 kept rows and 2 refused ones have pictures.
    assert page.count("data:image/webp") == 6
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    written.curation(shards_root, ["red"])
    assert Path(path).read_text() == page


def test_a_trainings_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"samples_seen": 1, "loss": 2.0}\n{"samples_seen": 2, "loss": 1.0}\n{"eval": "z", "top1": 0.25}\n'
    )
    path = written.training(str(tmp_path), "mine")
    assert path == f"{tmp_path}/report.html"
    page = Path(path).read_text()
    assert page.count("<svg") == 1
    assert "25.0 %" in page
    assert 'id="samples"' not in page
