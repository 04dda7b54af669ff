"""duplicate.image: of rows whose pictures had equal bytes, the first in source order stays."""

from __future__ import annotations

import pyarrow as pa

from curate.filter.duplicate_image import DuplicateImage


def test_equal_bytes_go_and_rows_without_a_picture_stay() -> None:
    stage = DuplicateImage()
    parts = [
        pa.table({"uid": ["a", "b"], "sha256": ["s1", None], "part": [0, 0], "row": [0, 1]}),
        pa.table(
            {
                "uid": ["c", "d", "e"],
                "sha256": ["s1", "s2", None],
                "part": [1, 1, 1],
                "row": [0, 1, 2],
            }
        ),
    ]
    state = stage.merge([stage.summarize(part) for part in parts])
    assert [stage.decide(part, state)["reason"].to_pylist() for part in parts] == [
        [None, None],
        ["duplicate.image", None, None],
    ]
