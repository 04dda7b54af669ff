"""The front of a recipe: text-only stages above the first paying one, and what moves there for an upper bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.front import Front, front_of, run
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.pipelines.test_funnel import FETCH, made, stages
from tests.tiny.stages import USE


def front(folder: Path, stage: list[dict[str, Any]]) -> Front:
    loaded = made(folder / "entries.txt", stage)
    return front_of(loaded, plan_curation(loaded))


def listed(folder: Path) -> list[dict[str, Any]]:
    (folder / "entries.txt").write_text("word0\nword1\n1\n2\n")
    return stages(folder / "entries.txt")


def test_it_ends_before_the_first_stage_that_pays(tmp_path: Path) -> None:
    chosen = listed(tmp_path)
    found = front(tmp_path, chosen)
    whole = plan_curation(made(tmp_path / "entries.txt", chosen))
    assert (found.paying, found.balance, found.moved) == (5, 4, ())
    assert whole.stages[5].use == FETCH
    # The whole run finds done what the front did.
    assert [p.fingerprint for p in found.plan.stages] == [p.fingerprint for p in whole.stages[:5]]


def test_a_recipe_of_text_only_is_all_front(tmp_path: Path) -> None:
    found = front(tmp_path, listed(tmp_path)[:4])
    assert (found.paying, found.balance, len(found.plan.stages)) == (None, 4, 5)


def test_a_balance_behind_the_download_is_moved_with_what_it_needs(tmp_path: Path) -> None:
    length, match, threshold, balance, picture, *_ = listed(tmp_path)
    size = {"use": f"{USE}:PictureSize"}
    big = {"use": "filter.threshold", "column": "picture_bytes", "at_least": 1}
    found = front(tmp_path, [length, picture, size, big, match, threshold, balance])
    uses = [p.use for p in found.plan.stages]
    assert uses == [
        "filter.duplicate_pair",
        f"{USE}:Length",
        "score.metadata_match",
        "filter.threshold",
        "filter.metadata_balance",
    ]
    assert found.moved == ("score.metadata_match", "filter.threshold#2", "filter.metadata_balance")
    assert (found.paying, found.balance) == (2, 4)


def test_a_balance_that_stands_on_pictures_has_no_front(tmp_path: Path) -> None:
    _, match, _, balance, picture, *_ = listed(tmp_path)
    by_size = {**balance, "by": "sha256"}
    found = front(tmp_path, [picture, match, by_size])
    assert (found.balance, found.moved, len(found.plan.stages)) == (None, (), 1)


def test_running_it_makes_the_pool_and_no_shards(tmp_path: Path) -> None:
    found = front(tmp_path, listed(tmp_path))
    assert run(found.plan, LocalRunner(), Quiet()) == 2
    assert not Path(found.plan.shards_root).exists()
    assert len(list(Path(found.plan.pool_root).glob("columns/*/part-00001.parquet"))) == 6
