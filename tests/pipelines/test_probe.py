"""Bytes of a download: a sample drawn the same way every time, sums with errors, and what is known without one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from curate.contract import parts
from pipelines import front, fused, probe, recipe
from pipelines.errors import RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.tiny.local_server import serve
from tests.tiny.pictures import encoded, quadrants
from tests.tiny.stages import Picture

ROWS = 40


def ready(folder: Path, address: str = "http://x", sizes: list[int | None] | None = None) -> Any:
    """(front plan with its rows taken in, download stage) over a list of ROWS urls."""
    columns: dict[str, Any] = {
        "url": [f"{address}/{n}.jpg" for n in range(ROWS)],
        "caption": [f"picture {n}" for n in range(ROWS)],
    }
    more = []
    if sizes is not None:
        columns["size_bytes"] = pa.array(sizes, pa.int64())
        more = ["size_bytes"]
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    curate = {
        "pool": str(folder / "pool"),
        "shards": str(folder / "shards"),
        "source": {"use": "source.url_table", "path": str(folder / "rows.parquet"), "rows_per_part": 15, **({"keep_columns": more} if more else {})},
        "stage": [{"use": "download.fetch", "allow_hosts": ["127.0.0.1"], "image_size": 64}],
    }  # fmt: skip
    loaded = recipe.from_data({"name": "probe", "curate": curate}, "test.toml")
    whole = plan_curation(loaded)
    ahead = front.front_of(loaded, whole)
    front.run(ahead.plan, LocalRunner(), Quiet())
    return ahead.plan, whole.stages[-1]


def test_the_sample_is_the_same_for_any_parts_and_a_larger_one_holds_it(tmp_path: Path) -> None:
    plan, fetch = ready(tmp_path)
    small = probe.sample(plan, fetch, 5)["uid"].to_pylist()
    large = probe.sample(plan, fetch, 12)["uid"].to_pylist()
    assert large[:5] == small
    assert len(set(large)) == 12
    assert len(probe.sample(plan, fetch, 1000)) == ROWS


@pytest.mark.net
def test_a_probe_fetches_the_sample_and_multiplies(tmp_path: Path) -> None:
    pictures = [encoded(quadrants(80 + n, 80), "JPEG", quality=95) for n in range(ROWS)]
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        number = int(request.path[1:].removesuffix(".jpg"))
        asked.append(request.path)
        return web.Response(status=404) if number % 4 == 0 else web.Response(body=pictures[number])

    with serve(handler) as address:
        plan, fetch = ready(tmp_path, address)
        found = probe.estimate(plan, fetch, ROWS, ROWS)
        some = probe.estimate(plan, fetch, ROWS, 10)
    real = sum(len(data) for n, data in enumerate(pictures) if n % 4)
    assert found.fetched == pytest.approx(real)
    assert (found.fetched_error, found.stored_error) == (0.0, 0.0)  # all of them were tried
    assert found.success_frac == 0.75
    assert found.stored is not None
    assert 0 < found.stored < real
    # The stage may still hold what it was asked for last.
    assert len(set(asked)) == ROWS <= len(asked) <= ROWS + 10
    assert some.fetched is not None
    assert abs(some.fetched - real) < 5 * some.fetched_error
    assert some.fetched_error > 0
    assert found.seconds_per_row is not None
    assert found.seconds_per_row > 0


def test_the_error_is_the_standard_error_of_the_sum() -> None:
    values = np.array([0.0, 10.0, 20.0, 30.0])
    total, error = probe._scaled(values, 100)
    assert total == 1500
    assert error == pytest.approx(values.std(ddof=1) / 2 * 100 * math.sqrt(0.96))
    assert probe._scaled(np.array([5.0]), 1) == (5.0, 0.0)


def test_a_source_s_sizes_are_summed_and_missing_ones_filled(tmp_path: Path) -> None:
    sizes: list[int | None] = [1000 + n for n in range(ROWS)]
    sizes[:4] = [None] * 4
    plan, fetch = ready(tmp_path, sizes=sizes)
    known = [size for size in sizes if size is not None]
    found = probe.estimate(plan, fetch, ROWS, 0)
    assert found.source == "column"
    assert found.fetched == pytest.approx(sum(known) / len(known) * ROWS)
    assert "known for 36 of 40 rows" in found.note


def test_an_earlier_run_s_pictures_tell_stored_sizes(tmp_path: Path) -> None:
    plan, fetch = ready(tmp_path)
    old = "a" * 64
    parts.write_table(
        plan.pool.columns_path(fetch.use, old, 0),
        pa.table({"uid": ["a"]}),
        {"rows_in": 10, "kept": 4},
    )
    images: list[bytes | None] = [b"\xff\xd8\xff" + bytes(97), b"\xff\xd8\xff" + bytes(297)]
    parts.write_images(plan.pool.images_path(old, 0), ["a", "b"], images)
    found = probe.estimate(plan, fetch, ROWS, 0)
    assert (found.source, found.success_frac, found.fetched) == ("earlier run", 0.4, None)
    assert found.stored == pytest.approx(200 * ROWS * 0.4)


def test_without_any_of_these_it_is_unknown(tmp_path: Path) -> None:
    plan, fetch = ready(tmp_path)
    assert probe.estimate(plan, fetch, ROWS, 0).source == "unknown"
    assert probe.estimate(plan, None, ROWS, 10).note == "nothing to download"


def test_a_download_that_can_t_be_used_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.download.fetch import Fetch
    from curate.stage import StageError

    def broken(self: Fetch) -> Any:
        raise StageError("no network. hint: plug it in")

    plan, fetch = ready(tmp_path)
    monkeypatch.setattr(Fetch, "open", broken)
    monkeypatch.setattr(fused, "_OPENED", {})
    with pytest.raises(RunFailed, match="no network"):
        probe.estimate(plan, fetch, ROWS, 3)


def test_a_row_that_the_stage_raises_on_counts_as_one_that_failed(tmp_path: Path) -> None:
    """As in a run: the row gets its error, and the forecast goes on."""
    urls = [f"http://x/{n}.jpg" for n in range(ROWS)]
    captions = [f"picture {n}" for n in range(ROWS)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "rows.parquet")
    curate = {
        "pool": str(tmp_path / "pool"),
        "shards": str(tmp_path / "shards"),
        "source": {"use": "source.url_table", "path": str(tmp_path / "rows.parquet")},
        "stage": [{"use": "tests.pipelines.test_probe:Raising"}],
    }
    loaded = recipe.from_data({"name": "raising", "curate": curate}, "test.toml")
    whole = plan_curation(loaded)
    ahead = front.front_of(loaded, whole)
    front.run(ahead.plan, LocalRunner(), Quiet())
    found = probe.estimate(ahead.plan, whole.stages[-1], ROWS, ROWS)
    assert found.success_frac == (ROWS - 1) / ROWS
    assert found.failures == {"error.tests.pipelines.test_probe:Raising.KeyError": 1}
    assert found.fetched is None


@dataclass(frozen=True, kw_only=True)
class Raising(Picture):
    """Breaks on one row."""

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        if "picture 7" in batch["caption"].to_pylist():
            raise KeyError("7")
        return super().process(batch, state)


def test_no_picture_at_all_is_no_rate_and_no_size(tmp_path: Path) -> None:
    plan, fetch = ready(tmp_path, "http://127.0.0.1:9")  # nothing listens there
    found = probe.estimate(plan, fetch, ROWS, 3)
    assert (found.fetched, found.stored, found.seconds_per_row) == (None, None, None)
    assert (found.success_frac, sum(found.failures.values())) == (0.0, 3)
    (reason,) = found.failures
    assert found.hint == fetch.stage.cures[reason.removeprefix("error.download.fetch.")]
