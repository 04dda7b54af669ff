"""What the demo prints: means over seeds, spread of shares, every reason."""

from __future__ import annotations

from pipelines.demo import told

RAW = [{"zero-shot": {"top1": 0.2, "n_pictures": 4}}, {"zero-shot": {"top1": 0.4, "n_pictures": 4}}]
CURATED = [
    {"zero-shot": {"top1": 0.5, "n_pictures": 4}},
    {"zero-shot": {"top1": 0.5, "n_pictures": 4}},
]
MANIFESTS = {
    "raw": {"kept": 9},
    "curated": {"rows_in": 10, "kept": 7, "stages": [{"refused": {"balanced": 3}}]},
}


def test_means_and_spread() -> None:
    assert told.means(RAW)["zero-shot"]["top1"] == (0.2 + 0.4) / 2
    lines = told.spread({"raw": RAW, "curated": CURATED}).splitlines()
    assert len(lines) == 2, "counts have no spread"
    assert "raw  20.0 to  40.0 %   curated  50.0 to  50.0 %" in lines[1]


def test_the_whole_text() -> None:
    text = told.text(MANIFESTS, [], {"raw": RAW[:1], "curated": CURATED[:1]}, 1000)
    assert "rows in 10, kept 7 (raw run: 9)" in text
    assert "3  balanced" in text
    assert "1,000 samples each" in text
    assert "one seed each" in text
    assert "means of 2 seeds" in told.text(MANIFESTS, [], {"raw": RAW, "curated": CURATED}, 1000)
