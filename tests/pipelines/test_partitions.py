"""The same decisions for 1, 7 and 100 parts, in process and with one or two workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.stage import GlobalStage, Resources
from pipelines import curation, run_ray
from pipelines.curation import Runner
from pipelines.plan import CurationPlan, plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet

ROWS = 300
WORDS = ("red", "blue", "dog", "cat", "sun", "tree", "car", "house")
BALANCES: dict[str, dict[str, Any]] = {
    "t": {"t": 20},
    "keep": {"keep": 120},
    "tail share": {"tail_share": 0.3},
    "by language": {"t": 20, "by": "lang"},
}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list with exact repeats, near captions of one picture, several languages, and a score."""
    rng = np.random.default_rng(4)
    folder = tmp_path_factory.mktemp("list")
    ranks = np.minimum(rng.geometric(0.35, (ROWS, 4)) - 1, len(WORDS) - 1)
    captions = [
        " ".join(WORDS[n] for n in row) + f" number {k % 60}" for k, row in enumerate(ranks)
    ]
    captions[200:230] = captions[0:30]
    captions[250:280] = [f"{caption}!" for caption in captions[40:70]]
    urls = [f"http://h/{k}.jpg" for k in range(ROWS)]
    urls[200:230], urls[250:280] = urls[0:30], urls[40:70]
    table = pa.table(
        {
            "url": urls,
            "caption": captions,
            "lang": [("en", "de", "en", "ja")[k % 4] for k in range(ROWS)],
            "score": pa.array(rng.integers(0, 50, ROWS) / 50, pa.float32()),
        }
    )
    pq.write_table(table, folder / "rows.parquet")
    (folder / "entries.txt").write_text("\n".join([*WORDS, "red blue", "dog cat"]) + "\n")
    return folder


def decisions(recipe: Any) -> list[tuple[Any, ...]]:
    ledger = pq.read_table(Path(recipe.curate.shards) / "ledger.parquet")
    return [tuple(row.values()) for row in ledger.to_pylist()]


def recipe_of(
    curate_recipe: Callable[..., Any], listed: Path, parts: int, balance: str, folder: str
) -> Any:
    source = {
        "use": "source.url_table",
        "path": str(listed / "rows.parquet"),
        "rows_per_part": -(-ROWS // parts),
        "keep_columns": ["lang", "score"],
    }
    stages = [
        {"use": "score.metadata_match", "entries": str(listed / "entries.txt")},
        {"use": "filter.near_caption"},
        {"use": "filter.top_fraction", "column": "score", "fraction": 0.8},
        {"use": "filter.metadata_balance", **BALANCES[balance]},
    ]
    return curate_recipe(source, stages, folder=folder)


@pytest.mark.parametrize(
    "balance",
    [
        "t",
        "keep",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("tail share", "by language")),
    ],
)
def test_any_parts_and_buckets(
    curate_recipe: Callable[..., Any], listed: Path, balance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for parts, bucket_rows in ((1, 2_000_000), (7, 2_000_000), (100, 150)):
        monkeypatch.setattr(GlobalStage, "bucket_rows", bucket_rows)
        recipe = recipe_of(curate_recipe, listed, parts, balance, f"{parts}")
        curation.run(plan_curation(recipe), LocalRunner(), Quiet())
        found.append(decisions(recipe))
    assert found[0] == found[1] == found[2]
    reasons = {row[4] for row in found[0]}
    expected = {"duplicate.pair", "near_duplicate.caption", "top_fraction.score", "balanced"}
    assert reasons == {None} | expected


class OneAtATime:
    """A runner whose tasks each ask for both CPUs of the session's cluster."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.workers = runner, 1

    def map(
        self, function: Any, plan: CurationPlan, calls: Sequence[Any], resources: Resources
    ) -> Iterator[tuple[int, Any]]:
        return self.runner.map(function, plan, calls, Resources(cpus=2))


@pytest.mark.ray
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_any_workers(
    curate_recipe: Callable[..., Any], listed: Path, ray_address: str, workers: int
) -> None:
    here = recipe_of(curate_recipe, listed, 1, "keep", "here")
    curation.run(plan_curation(here), LocalRunner(), Quiet())
    there = recipe_of(curate_recipe, listed, 7, "keep", "there")
    with run_ray.connected() as runner:
        curation.run(plan_curation(there), OneAtATime(runner) if workers == 1 else runner, Quiet())
    assert decisions(here) == decisions(there)
