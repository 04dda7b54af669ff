"""Forecasts are kept: this seed's number is the run's, expected ones are within 3 sigma, nothing runs twice."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from click.testing import CliRunner

from cli import main
from pipelines import costs, curation, forecast, forecast_text, recipe
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.tiny.stages import USE

ROWS = 900
WORDS = [f"word{n}" for n in range(12)]
BALANCE = "filter.metadata_balance"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of captions in which word n is in every (n + 1)th, and some captions match nothing."""
    folder = tmp_path_factory.mktemp("forecast")
    captions = [
        " ".join(word for k, word in enumerate(WORDS) if k and n % (k + 1) == 0) + f" no {n}"
        for n in range(ROWS)
    ]
    languages = ["en" if n % 3 else "de" for n in range(ROWS)]
    urls = [f"http://x/{n}" for n in range(ROWS)]
    table = pa.table({"url": urls, "caption": captions, "tongue": languages})
    pq.write_table(table, folder / "rows.parquet")
    (folder / "entries.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def made(world: Path, balance: dict[str, Any], stage: Any = None, **more: Any) -> Any:
    return recipe.from_data(data(world, balance, stage, **more), "test.toml")


def data(
    world: Path, balance: dict[str, Any], stage: Any = None, folder: str = "run", **more: Any
) -> dict[str, Any]:
    curate = {
        "pool": str(world / folder / "pool"),
        "shards": str(world / folder / "shards"),
        "source": {"use": "source.url_table", "path": str(world / "rows.parquet"), "rows_per_part": 400, "keep_columns": ["tongue"]},
        "stage": stage or [
            {"use": "score.metadata_match", "entries": str(world / "entries.txt")},
            {"use": BALANCE, **balance},
            {"use": "filter.threshold", "column": "tongue", "equals": "en"},
            {"use": f"{USE}:Picture"},
            {"use": f"{USE}:PictureSize"},
        ],
    }  # fmt: skip
    return {"name": "forecast", "curate": curate, **more}


def told(loaded: Any, **options: Any) -> forecast.Forecast:
    return forecast.forecast(loaded, LocalRunner(), Quiet(), **options)


def kept_by_run(loaded: Any) -> tuple[int, int]:
    """(rows the balance kept, rows that reached the pictures) of a real run."""
    manifest = curation.run(plan_curation(loaded), LocalRunner(), Quiet()).manifest
    stages = {stage["use"]: stage for stage in manifest["stages"]}
    return stages[BALANCE]["kept"], stages[f"{USE}:Picture"]["rows_in"]


@pytest.mark.parametrize(
    "balance",
    [{"t": 40}, {"keep": 300}, {"tail_share": 0.1}, {"t": 25, "by": "tongue"}, {"t": 20, "keep_unmatched": True}],
)  # fmt: skip
def test_a_forecast_is_what_the_run_then_keeps(world: Path, balance: dict[str, Any]) -> None:
    folder = "-".join(balance)
    balance = {**balance, "seed": 1}
    loaded = made(world, balance, folder=folder)
    found = told(loaded, ts=(10, 60))
    first = found.columns[0]
    assert first.balance is not None
    balanced, fetched = kept_by_run(loaded)
    assert first.funnel.at(BALANCE).kept == balanced
    assert first.funnel.kept == fetched == found.download.rows
    assert abs(first.balance.expected - balanced) <= 3 * first.balance.sigma
    for t, column in zip((10, 60), found.columns[1:], strict=True):
        rest = {k: v for k, v in balance.items() if k not in ("keep", "tail_share", "t")}
        other = made(world, {**rest, "t": t}, folder=f"{folder}-{t}")
        assert (column.funnel.at(BALANCE).kept, column.funnel.kept) == kept_by_run(other)
        assert column.balance is not None
        assert abs(column.balance.expected - column.funnel.at(BALANCE).kept) <= (
            3 * column.balance.sigma
        )


def test_the_figures_by_hand(world: Path) -> None:
    """Word k is in every (k + 1)th caption, so counts, chances and the tail are known."""
    found = told(made(world, {"t": 150})).columns[0].balance
    assert found is not None
    counts = {k: len(range(0, ROWS, k + 1)) for k in range(1, 12)}
    p = {k: min(1.0, 150 / count) for k, count in counts.items()}
    chances = []
    for n in range(ROWS):
        words = [k for k in counts if n % (k + 1) == 0]
        if words:
            chances.append(1 - math.prod(1 - p[k] for k in words))
    assert (found.rows, found.unmatched) == (ROWS, ROWS - len(chances))
    assert found.expected == pytest.approx(sum(chances))
    assert found.sigma == pytest.approx(math.sqrt(sum(c * (1 - c) for c in chances)))
    tail = [count for count in counts.values() if count < 150]
    assert found.head_and_tail == {
        "head_entries": len(counts) - len(tail),
        "head_matches": sum(counts.values()) - sum(tail),
        "tail_entries": len(tail),
        "tail_matches": sum(tail),
    }
    assert found.tail_share == pytest.approx(sum(tail) / sum(counts.values()))
    assert found.top[0] == (1, "", counts[1], p[1])
    assert found.t == {"": 150}


def test_the_run_after_it_finds_its_work_done(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.score.metadata_match import MetadataMatch

    loaded = made(world, {"t": 33}, folder="done")
    told(loaded)
    assert not (world / "done" / "shards").exists()

    def never(*_: Any) -> Any:
        raise AssertionError("matched twice")

    monkeypatch.setattr(MetadataMatch, "process", never)
    monkeypatch.setattr(MetadataMatch, "open", never)
    assert kept_by_run(loaded)[0] > 0
    assert told(loaded).columns[0].funnel.kept > 0


def test_a_solved_t_is_told(world: Path) -> None:
    found = told(made(world, {"keep": 200}, folder="solved")).columns[0].balance
    assert found is not None
    (t,) = found.t.values()
    assert 200 <= found.expected < 215
    assert found.asked == 200
    (below, fewer), (above, enough) = found.around
    assert (below, above) == (t - 1, t)
    assert fewer < 200
    assert enough == pytest.approx(found.expected)
    lower = told(made(world, {"t": t - 1}, folder="solved")).columns[0].balance
    assert lower is not None
    assert lower.expected < 200


def test_a_balance_behind_the_download_is_an_upper_bound(world: Path) -> None:
    match = {"use": "score.metadata_match", "entries": str(world / "entries.txt")}
    stage = [{"use": f"{USE}:Picture", "dead": "no 1"}, match, {"use": BALANCE, "t": 30}]
    loaded = made(world, {}, stage, folder="behind")
    found = told(loaded)
    assert found.front.moved == ("score.metadata_match", BALANCE)
    assert found.columns[0].balance is not None
    assert found.columns[0].balance.rows == ROWS
    manifest = curation.run(plan_curation(loaded), LocalRunner(), Quiet()).manifest
    assert manifest["stages"][-1]["rows_in"] < ROWS


def test_costs_are_of_what_is_still_to_pay(world: Path) -> None:
    found = told(made(world, {"t": 40}, folder="costs"), workers=4)
    assert [cost.stage for cost in found.costs] == [f"{USE}:Picture", f"{USE}:PictureSize"]
    assert {cost.rows for cost in found.costs} == {found.columns[0].funnel.kept}
    assert found.workers == 4


def test_t_without_a_balance_to_forecast_is_refused(world: Path) -> None:
    stage = [{"use": f"{USE}:Length"}, {"use": f"{USE}:Picture"}]
    with pytest.raises(RecipeError, match="0 stages"):
        told(made(world, {}, stage, folder="none"), ts=(5,))
    found = told(made(world, {}, stage, folder="none"))
    assert found.columns[0].balance is None
    assert found.columns[0].funnel.kept == ROWS


def test_the_command_tells_text_or_json(world: Path) -> None:
    path = world / "r.toml"
    path.write_text(tomli_w.dumps(data(world, {"t": 40}, folder="command")))
    arguments = ["forecast", str(path), "--local", "--t", "10,0.06k"]
    text = CliRunner().invoke(main, arguments)
    assert text.exit_code == 0, text.stderr
    assert "this seed keeps" in text.stdout
    record = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert [column["name"] for column in record["columns"]] == ["recipe", "t = 10", "t = 60"]
    whatif = CliRunner().invoke(
        main, ["whatif", str(world / "command" / "pool"), "--t", "10", "--json"]
    )
    assert whatif.exit_code == 0, whatif.stderr
    columns = json.loads(whatif.stdout)["columns"]
    balances = [s for s in columns[1]["stages"] if s["stage"] == BALANCE]
    assert balances[0]["kept"] == record["columns"][1]["balance"]["kept"]
    assert CliRunner().invoke(main, [*arguments, "--workers", "2"]).exit_code == 2


def test_json_has_seconds_by_workers_and_rows_below_the_download(world: Path) -> None:
    found = told(made(world, {"t": 40}, folder="json"), workers=4)
    first, second = found.costs
    rate = costs.Rate(2.0, "probe")
    changed = dataclasses.replace(found, costs=(dataclasses.replace(first, rate=rate), second))
    record = forecast.record(changed)
    assert record["costs"][0]["seconds"] == 2.0 * first.rows / 4
    whole = plan_curation(made(world, {"t": 40}, folder="json"))
    download = dataclasses.replace(found.download, success_frac=0.5)
    below = forecast._costs(whole, found.front, first.rows, download)
    assert [cost.rows for cost in below] == [first.rows, round(first.rows * 0.5)]


def test_languages_are_told_apart_and_named_by_their_own_lists(world: Path) -> None:
    """The same ids mean other entries in each list, and a language without one matches nothing."""
    lists = world / "lists"
    lists.mkdir()
    (lists / "en.txt").write_text("\n".join(WORDS) + "\n")
    languages = ["ja" if n % 3 == 0 else "en" for n in range(ROWS)]
    table = pq.read_table(world / "rows.parquet").drop_columns(["tongue"])
    pq.write_table(table.append_column("language", pa.array(languages)), world / "by.parquet")
    match = {"use": "score.metadata_match", "entries": str(lists), "rule": "worldwide"}
    stage = [match, {"use": BALANCE, "t": 40, "by": "language"}]
    plain = data(world, {}, stage, folder="by")
    plain["curate"]["source"] |= {"path": str(world / "by.parquet"), "keep_columns": ["language"]}
    found = told(recipe.from_data(plain, "test.toml"))
    balance = found.columns[0].balance
    assert balance is not None
    groups = balance.groups
    assert {name: one.rows for name, one in groups.items()} == {"en": 600, "ja": 300}
    assert groups["ja"] == forecast.Group(300, 300, 0.0, has_no_list=True)
    assert not groups["en"].has_no_list
    assert groups["en"].expected == pytest.approx(balance.expected)
    assert groups["en"].unmatched == balance.unmatched - 300
    assert {found.entry_texts[entry, "en"] for entry, *_ in balance.top} <= set(WORDS)
    text = "\n".join(forecast_text.lines(found))
    assert "ja: 300 rows, no list, fallback is empty" in text
    assert "nothing to download, nothing left to pay" in text


def test_ray_is_not_started_where_the_front_is_done(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = world / "noray.toml"
    path.write_text(tomli_w.dumps(data(world, {"t": 40}, folder="noray")))

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ray")

    monkeypatch.setattr("pipelines.run_ray.connected", never)
    first = CliRunner().invoke(main, ["forecast", str(path)])
    assert isinstance(first.exception, AssertionError)
    assert CliRunner().invoke(main, ["forecast", str(path), "--local"]).exit_code == 0
    again = CliRunner().invoke(main, ["forecast", str(path)])
    assert again.exit_code == 0, again.stderr


def test_another_way_to_say_the_threshold_can_be_forecast(world: Path) -> None:
    path = world / "trial.toml"
    path.write_text(tomli_w.dumps(data(world, {"t": 40}, folder="trial")))
    change = ["--set", "curate.stage.metadata_balance.keep=200"]
    done = CliRunner().invoke(main, ["forecast", str(path), "--local", *change])
    assert done.exit_code == 0, done.stderr
    assert "keep = 200: t = " in done.stdout


def test_a_change_of_keep_takes_the_place_of_t_in_every_command(world: Path) -> None:
    path = world / "both.toml"
    path.write_text(tomli_w.dumps(data(world, {"t": 40}, folder="both")))
    change = ["--set", "curate.stage.metadata_balance.keep=120"]
    for words in (["plan"], ["check"], ["forecast", "--local"], ["curate", "--local"]):
        done = CliRunner().invoke(main, [words[0], str(path), *words[1:], *change])
        assert done.exit_code == 0, (words, done.stderr)
    both = CliRunner().invoke(main, ["plan", str(path), *change, "--set", "curate.stage.1.t=9"])
    assert both.exit_code == 2
