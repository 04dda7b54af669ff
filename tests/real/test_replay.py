"""The real mix of outcomes, replayed by a local server: each row ends as it was planted.

Needs the shared data; skipped where it is absent. ``python tests/real/test_replay.py`` replays all of it.
"""

from __future__ import annotations

import collections
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from curate.download.fetch import Fetch
from tests.bench.web import served
from tests.real import replay
from tests.real.replay import Planted

pytestmark = pytest.mark.net
PREFIX = "error.download.fetch."


def fetched(rows: list[Planted], notes: Path, **options: Any) -> tuple[list[str | None], pa.Table]:
    """Kinds, None for a picture, and all columns, row by row, through the whole stage."""
    hosts = tuple(sorted({row.host for row in rows}))
    stage = Fetch(allow_hosts=hosts, **options)
    stage.check()
    with served([row.answer for row in rows]) as site:
        table = pa.table(
            {
                "uid": [f"{number:032x}" for number in range(len(rows))],
                "url": [row.url(number, site.http_port) for number, row in enumerate(rows)],
            }
        )
        state = stage.open()
        stage.expect(table, state, str(notes))
        done = pa.concat_tables(
            stage.process(table.slice(start, stage.batch_rows), state)
            for start in range(0, len(table), stage.batch_rows)
        )
    kinds = [reason and reason.removeprefix(PREFIX) for reason in done["reason"].to_pylist()]
    return kinds, done


def wrong(rows: list[Planted], kinds: list[str | None]) -> list[tuple[str, str | None, str | None]]:
    """(URL, planted, found) of every row that ended otherwise than planted."""
    return [(row.row["url"], row.kind, kind) for row, kind in zip(rows, kinds) if row.kind != kind]


def test_each_row_of_the_real_mix_ends_as_planted(shared_data: Path, tmp_path: Path) -> None:
    rows = replay.planted(replay.sample(replay.read(shared_data / replay.FILE), 700, 80))
    assert 1300 < len(rows) < 1700
    planted = collections.Counter(row.kind for row in rows)
    assert {
        "opt_out",
        "not_an_image",
        "connection",
        "too_small",
        "http.404",
        "http.503",
        "http.204",
    } <= set(planted)
    kinds, table = fetched(rows, tmp_path / "notes")
    assert not wrong(rows, kinds)
    assert collections.Counter(kinds) == planted
    ok = [row.kind is None for row in rows]
    assert table["keep"].to_pylist() == ok
    assert [image is not None for image in table["image"].to_pylist()] == ok
    statuses = dict(zip(kinds, table["status"].to_pylist()))
    assert statuses[None] == "success"
    assert statuses["http.404"] == "failed_to_download"
    assert statuses["not_an_image"] == "failed_to_resize"


def main() -> None:
    import tempfile

    from tests.bench.corpus import shared_folder

    folder = shared_folder()
    if folder is None:
        sys.exit("the shared data is not here. hint: set CLIP_PIPE_SHARED_DATA")
    rows = replay.planted(replay.read(folder / replay.FILE), most_bytes=64_000)
    with tempfile.TemporaryDirectory() as notes:
        began = time.monotonic()
        kinds, _ = fetched(rows, Path(notes) / "notes")
    print(
        f"{len(rows)} rows in {time.monotonic() - began:.0f} s; {len(wrong(rows, kinds))} ended otherwise than planted"
    )
    counts = collections.Counter(kinds)
    for kind, count in collections.Counter(row.kind for row in rows).most_common():
        print(f"{kind or 'ok':20s} planted {count:6d}  found {counts[kind]:6d}")
    for found in wrong(rows, kinds)[:20]:
        print(found)


if __name__ == "__main__":
    main()
