"""Recipes of papers: they plan as written, keep and refuse what the paper says, and share what is fetched."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from pipelines import recipe
from pipelines.plan import CurationPlan, plan_curation
from tests.pipelines.test_curation import run
from tests.tiny import models
from tests.tiny.local_server import serve
from tests.tiny.pictures import encoded

SIZES = {"good": (300, 240), "small": (300, 199), "long": (601, 200), "three": (600, 200)}
ENGLISH = "a brown dog runs through the green forest"


@pytest.fixture
def entries(tmp_path: Path) -> str:
    path = tmp_path / "entries.txt"
    path.write_text("dog\nforest\nbrown dog\n")
    return str(path)


def table(folder: Path, rows: list[tuple[str, str]]) -> str:
    """A pool's table with columns both as CommonPool and as other lists name them."""
    urls, captions = zip(*rows)
    path = folder / "list.parquet"
    pq.write_table(pa.table({"url": urls, "text": captions, "caption": captions}), path)
    return str(path)


def planned(name: str, path: str, *changes: str) -> CurationPlan:
    return plan_curation(recipe.load(name, [f"curate.source.path={path}", *changes]))


@pytest.fixture
def site() -> Iterator[str]:
    """Answers /<name>-<n>.jpg with noise of the size called so."""

    async def answer(request: Any) -> web.StreamResponse:
        name, _, number = request.path.strip("/").removesuffix(".jpg").partition("-")
        width, height = SIZES[name]
        noise = np.random.default_rng(int(number)).integers(0, 255, (height, width, 3))
        return web.Response(body=encoded(noise.astype(np.uint8), "JPEG"))

    with serve(answer) as base:
        yield base


def outcome(shards: str) -> dict[str, str | None]:
    """Caption or picture's name -> reason, by the ledger."""
    rows = pq.read_table(Path(shards) / "ledger.parquet").to_pylist()
    return {row["url"].rsplit("/", 1)[1].removesuffix(".jpg"): row["reason"] for row in rows}


def test_every_recipe_of_a_paper_plans_as_written(tmp_path: Path, entries: str) -> None:
    path = table(tmp_path, [("http://host/1.jpg", ENGLISH)])
    match = f"curate.stage.metadata_match.entries={entries}"
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"planning loads no model")
    clip = [f"curate.stage.clip_score.checkpoint={weights}"]
    basic = planned("datacomp_basic", path)
    scored = planned("datacomp_clip_score", path, *clip)
    metaclip = planned("metaclip", path, match)
    less = planned("less_is_more", path, match)
    assert [plan.recipe for plan in (basic, scored, metaclip, less)] == [
        "datacomp-basic",
        "datacomp-clip-score",
        "metaclip",
        "less-is-more",
    ]
    # The same pool and the same fetched pictures; only what comes after differs.
    assert metaclip.pool_root == less.pool_root
    shared = [stage.fingerprint for stage in metaclip.stages]
    assert [stage.fingerprint for stage in less.stages][: len(shared)] == shared
    assert [stage.use for stage in less.stages[len(shared) :]] == [
        "score.text_regions",
        "filter.threshold",
    ]
    roots = [plan.shards_root for plan in (basic, scored, metaclip, less)]
    assert len(set(roots)) == 4


def test_less_is_more_trains_as_long_as_metaclip_and_metaclip_as_clip() -> None:
    names = ("clip_b32", "metaclip", "less_is_more")
    clip, metaclip, less = (recipe.load(name).resolved["train"] for name in names)
    assert clip["phase"] == metaclip["phase"] == less["phase"]
    assert (clip["model"], metaclip["model"]) == ("ViT-B-32", "ViT-B-32-quickgelu")
    assert less["model"] == metaclip["model"]


@pytest.mark.net
def test_datacomp_basic_keeps_what_the_paper_keeps(tmp_path: Path, site: str) -> None:
    rows = [(f"{site}/good-{n}.jpg", f"{ENGLISH} {n}") for n in range(2)]
    rows += [(f"{site}/{name}-{n}.jpg", ENGLISH) for n, name in enumerate(SIZES, 10)]
    rows += [
        (f"{site}/good-20.jpg", "ein brauner Hund läuft durch den grünen Wald"),
        (f"{site}/good-21.jpg", "the dog"),
        (f"{site}/good-22.jpg", "I a a"),
    ]
    loaded = recipe.load(
        "datacomp_basic",
        [
            f"curate.source.path={table(tmp_path, rows)}",
            f"curate.pool={tmp_path}/pool",
            f"curate.shards={tmp_path}/shards",
            'curate.stage.fetch.allow_hosts=["127.0.0.1"]',
        ],
    )
    run(loaded)
    found = outcome(f"{tmp_path}/shards")
    kept = {name for name, reason in found.items() if reason is None}
    assert kept == {"good-0", "good-1", "good-10", "three-13"}
    assert found["small-11"] == "threshold.min_side_px"
    assert found["long-12"] == "threshold.aspect_ratio"
    assert found["good-20"] == "threshold.language"
    assert {found["good-21"], found["good-22"]} <= {
        "threshold.language",
        "threshold.caption_words",
        "threshold.caption_chars",
    }


@pytest.mark.net
def test_datacomp_clip_score_keeps_the_best_share(tmp_path: Path, site: str) -> None:
    rows = [(f"{site}/good-{n}.jpg", f"picture of thing {n}") for n in range(10)]
    clip = [f"curate.stage.clip_score.{k}={v}" for k, v in models.clip_options(tmp_path).items()]
    loaded = recipe.load(
        "datacomp_clip_score",
        [
            f"curate.source.path={table(tmp_path, rows)}",
            f"curate.pool={tmp_path}/pool",
            f"curate.shards={tmp_path}/shards",
            'curate.stage.fetch.allow_hosts=["127.0.0.1"]',
            "curate.stage.clip_score.model=",
            *clip,
        ],
    )
    run(loaded)
    found = outcome(f"{tmp_path}/shards")
    assert list(found.values()).count(None) == 3
    assert set(found.values()) == {None, "top_fraction.clip_score"}
    folders = Path(loaded.curate.pool).glob("columns/score.clip_score-*/part-*.parquet")  # type: ignore[union-attr]
    scores = pa.concat_tables([pq.read_table(path) for path in folders])
    ledger = pq.read_table(tmp_path / "shards" / "ledger.parquet", columns=["uid", "keep"])
    joined = scores.select(["uid", "clip_score"]).join(ledger, "uid").to_pylist()
    least = min(row["clip_score"] for row in joined if row["keep"])
    assert all(row["clip_score"] <= least for row in joined if not row["keep"])


def test_headers_name_options_that_are_there() -> None:
    for name in ("datacomp_basic", "datacomp_clip_score", "metaclip", "less_is_more"):
        text = (recipe.SHIPPED / f"{name}.toml").read_text()
        assert "not yet run" in text.split("\n\n")[0]
        changes = [f"curate.stage.{part.split('=')[0].split()[0]}=x" for part in text.split("\n\n")[0].split("--set curate.stage.")[1:]]  # fmt: skip
        assert recipe.load(name, changes).curate is not None
        assert tomllib.loads(text)["paper"].startswith("arXiv ")
