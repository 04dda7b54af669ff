"""A balance that makes up for dead links ends near its number, fetches nothing twice, and decides alike."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.contract.draw import draws
from pipelines import allowance, curation, forecast, forecast_text, retry, run_ray, whatif
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet, ledger, shard_bytes
from tests.tiny.changing_server import GET, Web, changing, write_list
from tests.tiny.stages import USE

ROWS, KEEP, DEAD_FRAC = 1500, 300, 0.3
BALANCE = "filter.metadata_balance"


@pytest.fixture
def web() -> Iterator[Web]:
    """Three of ten links are dead: 404 and 503 by turns, as drawn."""
    with changing() as made:
        lots = draws([str(n) for n in range(ROWS)], "dead")
        for number in range(ROWS):
            if lots[number] < DEAD_FRAC:
                made.answers[str(number)] = 503 if number % 2 else 404
        yield made


@pytest.fixture
def make(curate_recipe: Callable[..., Any], tmp_path: Path, web: Web) -> Callable[..., Any]:
    write_list(tmp_path / "list" / "b.parquet", web.url, 0, ROWS)
    (tmp_path / "entries.txt").write_text("word0\nword1\nword2\n")

    def made(folder: str = "run", **options: Any) -> Any:
        source = {"use": "source.url_table", "path": str(tmp_path / "list"), "rows_per_part": 400}
        stages = [
            {"use": "score.metadata_match", "entries": str(tmp_path / "entries.txt")},
            {"use": BALANCE, "keep": KEEP, "oversample": "observed", **options},
            {"use": GET},
            {"use": f"{USE}:PictureSize"},
            {"use": f"{USE}:Common", "most": 10_000},
        ]
        return curate_recipe(source, stages, folder=folder)

    return made


def run(recipe: Any) -> curation.Outcome:
    return curation.run(plan_curation(recipe), LocalRunner(), Quiet(), recipe)


def noted(recipe: Any) -> dict[str, Any]:
    (entry,) = json.loads(Path(recipe.curate.pool, "allowance.json").read_text()).values()
    return dict(entry)


def test_it_ends_near_the_number_and_asks_for_nothing_twice(
    make: Callable[..., Any], web: Web
) -> None:
    recipe = make()
    outcome = run(recipe)
    assert set(web.ever.values()) == {1}, "a failed row was asked again, too"
    kept = outcome.manifest["kept"]
    # Rows asked for and rows that come are both drawn, independently.
    sigma = math.sqrt(KEEP * 0.7 * 2)
    assert abs(kept - KEEP) < 3 * sigma
    entry = noted(recipe)
    assert entry["settled"]
    assert entry["rounds"][0]["success_frac"] == pytest.approx(0.7, abs=0.08)
    assert 330 < len(web.ever) < 520
    assert run(recipe).already_done
    options = plan_curation(recipe).stages[2].options
    frac = entry["rounds"][-1]["success_frac"]
    assert options["oversample"] == pytest.approx(1 / frac, abs=1e-6)


def test_two_pools_end_alike(make: Callable[..., Any], web: Web) -> None:
    one, other = make("one"), make("other")
    run(one)
    run(other)
    assert shard_bytes(one) == shard_bytes(other)
    assert ledger(one) == ledger(other)
    assert noted(one) == noted(other)


def test_a_number_is_asked_for_at_once(make: Callable[..., Any], web: Web) -> None:
    observed, fixed = make("observed"), make("fixed")
    run(observed)
    factor = plan_curation(observed).stages[2].options["oversample"]
    fixed.curate.stage[1].options["oversample"] = factor
    run(fixed)
    assert shard_bytes(observed) == shard_bytes(fixed)
    assert not Path(fixed.curate.pool, "allowance.json").exists()


@pytest.mark.parametrize("where", ["observed", "again"])
def test_killed_between_rounds(
    make: Callable[..., Any], web: Web, where: str, tmp_path: Path
) -> None:
    recipe = make("killed")

    def die() -> None:
        original = allowance.observe

        def observe(*arguments: Any) -> list[str]:
            if where == "again" and Path(recipe.curate.pool, "allowance.json").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            told = original(*arguments)
            if where == "observed":
                os.kill(os.getpid(), signal.SIGKILL)
            return told

        allowance.observe = observe  # type: ignore[assignment]
        run(recipe)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert not Path(recipe.curate.shards, "manifest.json").exists()
    run(recipe)
    assert set(web.ever.values()) == {1}
    web.ever.clear()
    quiet = make("quiet")
    run(quiet)
    assert shard_bytes(recipe) == shard_bytes(quiet)
    assert ledger(recipe) == ledger(quiet)


def test_a_pool_with_too_few_rows_gives_all(make: Callable[..., Any], web: Web) -> None:
    recipe = make(keep=1400)
    kept = run(recipe).manifest["kept"]
    assert kept == ROWS - len(web.answers)
    assert len(web.ever) == ROWS


def test_a_live_web_needs_no_second_round(make: Callable[..., Any], web: Web) -> None:
    web.answers.clear()
    recipe = make()
    run(recipe)
    assert noted(recipe)["rounds"] == []
    assert plan_curation(recipe).stages[2].options["oversample"] == 1.0


def test_a_retry_keeps_the_allowance(make: Callable[..., Any], web: Web) -> None:
    recipe = make()
    run(recipe)
    before = noted(recipe)
    failed = [row["url"].rsplit("/", 1)[-1] for row in ledger(recipe) if row["stage"] == GET]
    busy = {path for path in failed if web.answers[path] == 503}
    assert busy
    web.answers = {path: 404 for path, status in web.answers.items() if status == 404}
    web.reset()
    retry.begin(plan_curation(recipe), ("http.503",))
    run(recipe)
    assert dict(web.asked) == dict.fromkeys(busy, 1)
    assert noted(recipe) == before


def test_forecast_and_whatif_take_what_is_known(make: Callable[..., Any], web: Web) -> None:
    recipe = make()
    first = forecast.forecast(recipe, LocalRunner(), Quiet(), sample_rows=100)
    assert abs(first.columns[0].funnel.kept - KEEP) < 60
    assert first.download.success_frac is not None
    shown = "\n".join(forecast_text.lines(first))
    need = round(first.columns[0].funnel.kept / first.download.success_frac)
    assert first.download.rows == need
    assert f"about {need:,} rows have to be fetched" in shown
    outcome = run(recipe)
    then = forecast.forecast(recipe, LocalRunner(), Quiet())
    asked = {one["use"]: one for one in outcome.manifest["stages"]}[GET]["rows_in"]
    assert then.columns[0].funnel.kept == asked
    assert "have to be fetched" not in "\n".join(forecast_text.lines(then))
    compared = whatif.compare(recipe.curate.pool, ["curate.stage.metadata_balance.t=50"])
    assert compared[0][1].kept == outcome.manifest["kept"]
    assert compared[1][1].kept < compared[0][1].kept


def killed(work: Callable[[], Any]) -> None:
    """Run something in another process, which is to kill itself."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def test_a_retry_before_it_is_settled_asks_only_the_kinds_named(
    make: Callable[..., Any], web: Web
) -> None:
    for path, status in web.answers.items():
        web.answers[path] = 500 if status == 404 else 503
    recipe = make()

    def die() -> None:
        original = allowance.observe

        def observe(*arguments: Any) -> None:
            original(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        allowance.observe = observe  # type: ignore[assignment]
        run(recipe)

    killed(die)
    before = set(web.ever)
    assert allowance.unsettled(plan_curation(recipe))
    begun = retry.begin(plan_curation(recipe), ("http.503",))
    busy = {path for path in before if web.answers.get(path) == 503}
    assert begun.rows == len(busy) > 0
    web.reset()
    run(recipe)
    assert before & set(web.asked) == busy
    assert set(web.asked.values()) == {1}


def test_a_source_that_grows_is_observed_anew(
    make: Callable[..., Any], web: Web, tmp_path: Path
) -> None:
    recipe = make()
    run(recipe)
    before = set(web.ever)
    write_list(tmp_path / "list" / "c.parquet", web.url, ROWS, 400)
    web.reset()
    outcome = run(recipe)
    again = {path for path in web.asked if path in before}
    assert {web.answers[path] for path in again} <= {503}, "a 404 lasts, and a picture is there"
    assert set(web.asked.values()) == {1}
    assert abs(outcome.manifest["kept"] - KEEP) < 3 * math.sqrt(KEEP * 0.7 * 2)
    entries = json.loads(Path(recipe.curate.pool, "allowance.json").read_text())
    assert [entry["settled"] for entry in entries.values()] == [True, True]


@pytest.mark.ray
def test_it_decides_alike_under_ray(
    make: Callable[..., Any], web: Web, ray_address: str, tmp_path: Path
) -> None:
    here, there = make("here"), make("there")
    run(here)
    with run_ray.connected() as runner:
        curation.run(plan_curation(there), runner, Quiet(), there)
    assert shard_bytes(here) == shard_bytes(there)
    assert noted(here) == noted(there)


def asks_again(fracs: tuple[float, ...], kept: tuple[int, ...], wanted: int, frac: float) -> bool:
    """Whether a stage that kept ``kept`` in its rounds asks again, with ``frac`` of the last coming through."""
    one = allowance.Allowance(0, "balance", wanted, "key", fracs, settled=False)
    rounds = [{"rows_kept": rows, "success_frac": 1.0} for rows in kept[:-1]]
    return allowance._asks_again(one, {"rows_kept": kept[-1], "success_frac": frac}, rounds)


def test_when_it_asks_again() -> None:
    assert asks_again((), (10_000,), 10_000, 0.99)
    assert not asks_again((), (10_000,), 10_000, 1.0)
    assert not asks_again((), (10_000,), 10_000, 0.0), "nothing comes: more of it is nothing"
    # A second time, where the next rows are worse than the first ones and it is short by a lot.
    assert asks_again((0.8,), (10_000, 12_500), 10_000, 0.7)
    assert not asks_again((0.8,), (10_000, 12_500), 10_000, 0.78), "within three sigmas"
    assert not asks_again((0.8,), (10_000, 12_500), 10_000, 0.81), "enough of them come"
    assert not asks_again((0.8,), (10_000, 10_000), 10_000, 0.7), "there are no more rows"
    assert not asks_again((0.8, 0.7), (10_000, 12_500, 14_000), 10_000, 0.5), "three rounds"


def test_nothing_to_make_up_for_is_refused(make: Callable[..., Any]) -> None:
    recipe = make()
    short = dataclasses.replace(recipe.curate, stage=recipe.curate.stage[:2])
    with pytest.raises(RecipeError, match="no stage below it makes pictures"):
        plan_curation(dataclasses.replace(recipe, curate=short))
