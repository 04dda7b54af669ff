"""duplicate.pair: of rows with one uid, the first in source order stays."""

from __future__ import annotations

import pyarrow as pa

from curate.contract.draw import pair_uid
from curate.filter.duplicate_pair import DuplicatePair


def test_exact_repeats_of_url_and_caption_go() -> None:
    pairs = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", "x")]
    stage = DuplicatePair()
    assert set(stage.reads()) == {"uid", "part", "row"}
    part = pa.table({"uid": [pair_uid(*pair) for pair in pairs], "part": [3] * 5, "row": range(5)})
    decided = stage.decide(part, stage.summarize(part))
    assert decided.schema == stage.writes()
    assert decided["keep"].to_pylist() == [True, True, False, True, False]
    assert decided["reason"].to_pylist() == [None, None, "duplicate.pair", None, "duplicate.pair"]
