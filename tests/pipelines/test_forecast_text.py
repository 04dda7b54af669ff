"""The forecast's words: what is unknown is said to be, errors stand beside sums, upper bounds are called so."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines import costs, forecast, forecast_text
from pipelines.allowance import Allowance
from pipelines.front import front_of
from pipelines.funnel import Funnel, StageCount
from pipelines.plan import plan_curation
from pipelines.probe import Bytes
from tests.pipelines.test_funnel import made, stages


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """``found(**changes)``: a forecast with figures of our own."""
    entries = tmp_path / "entries.txt"
    entries.write_text("word0\nword1\n")
    loaded = made(entries, stages(entries))
    front = front_of(loaded, plan_curation(loaded))
    funnel = Funnel((StageCount("source", 100), StageCount("filter.metadata_balance", 100, {"balanced": 40})))  # fmt: skip
    parts = {"head_entries": 1, "head_matches": 90, "tail_entries": 1, "tail_matches": 10}
    balance = forecast.Balance({"": 20}, 100, 5, 61.25, 3.5, parts, ((1, "", 90, 0.2222), (0, "", 10, 1.0)))  # fmt: skip

    def make(**changes: Any) -> forecast.Forecast:
        figures: dict[str, Any] = {
            "recipe": "r",
            "pool": "/pool",
            "front": front,
            "columns": (forecast.Column("recipe", funnel, balance),),
            "download": Bytes("unknown", 60),
            "costs": (forecast.Cost("download.fetch", 60, None),),
            "workers": 1,
            "entry_texts": {(0, ""): "cat", (1, ""): "dog"},
        }
        return forecast.Forecast(**{**figures, **changes})

    return make


def cells(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def test_the_balance_and_the_most_frequent_entries(found: Any) -> None:
    lines = cells(forecast_text.lines(found()))
    for wanted in (
        ["t", "20"],
        ["expected", "to", "be", "kept", "61.2"],
        ["standard", "deviation", "3.5"],
        ["this", "seed", "keeps", "60"],
        ["share", "of", "all", "matches", "10.00%"],
        ["dog", "90", "0.2222"],
        ["cat", "10", "1.0000"],
    ):
        assert wanted in lines


def test_what_is_unknown_is_called_so(found: Any) -> None:
    lines = forecast_text.lines(found())
    assert "  bytes unknown: give --probe N to fetch N of them" in lines
    assert lines[-1].split() == ["download.fetch", "60", "unknown"]
    assert not any("upper bound" in line for line in lines)


def test_a_probe_s_sums_have_their_errors(found: Any) -> None:
    probe = Bytes("probe", 1_000_000, 100, 0.8, 2.5e11, 1e10, 3e10, 1e9, 0.02)
    lines = forecast_text.lines(found(download=probe))
    told = "download: 1,000,000 URLs; of 100 tried 80.0% came (not kept: a run fetches them again)"
    assert told in lines
    assert "  over the network 250 GB ± 10 GB" in lines
    assert "  pictures as stored 30 GB ± 1 GB" in lines
    assert "  shards about 32.9 GB, if no later stage refuses a row" in lines


def test_time_names_where_its_rate_is_from(found: Any) -> None:
    rate = costs.Rate(0.5, "measured in this pool")
    some = (forecast.Cost("a", 7200, rate), forecast.Cost("b", 10, None))
    lines = forecast_text.lines(found(costs=some, workers=2))
    assert lines[-2].split(maxsplit=2)[2] == "about 30 min by 2 workers (measured in this pool)"


def test_a_download_s_rate_is_told_for_each_worker(found: Any) -> None:
    some = (forecast.Cost("download.fetch", 7200, costs.Rate(0.02, "probe")),)
    line = forecast_text.lines(found(costs=some))[-1]
    assert line.endswith("(probe); 50 URLs a second and worker, bound by the network")


def test_an_upper_bound_names_the_stages_that_were_moved(found: Any) -> None:
    front = dataclasses.replace(found().front, moved=("score.x",))
    lines = forecast_text.lines(found(front=front))
    assert lines[2].startswith("upper bound: in the recipe score.x stand behind stages")


def test_nothing_to_download(found: Any) -> None:
    lines = forecast_text.lines(found(download=Bytes("unknown", 5, note="nothing to download"), costs=()))  # fmt: skip
    assert lines[-1] == "nothing to download, nothing left to pay"
    lines = forecast_text.lines(found(download=Bytes("unknown", 5, note="nothing to download")))
    assert "nothing to download" in lines


def test_a_probe_without_a_picture_says_why_and_what_to_do(found: Any) -> None:
    failures = {"error.download.fetch.http.404": 3, "error.download.fetch.refused": 97}
    probe = Bytes("probe", 1_000, 100, 0.0, failures=failures, hint="start the server")
    lines = forecast_text.lines(found(download=probe))
    assert "  97 failed: error.download.fetch.refused" in lines
    assert "  3 failed: error.download.fetch.http.404" in lines
    assert "  bytes and time unknown: no picture came" in lines
    assert "  hint: start the server" in lines


def test_groups_and_solved_thresholds(found: Any) -> None:
    (column,) = found().columns
    groups = {
        "en": forecast.Group(60, 5, 40.0),
        "": forecast.Group(10, 10, 0.0, has_no_list=True),
        "ja": forecast.Group(30, 30, 0.0, has_no_list=True),
    }
    balance = dataclasses.replace(
        column.balance, groups=groups, asked=50, around=((19, 48.0), (20, 61.2))
    )
    lines = forecast_text.lines(found(columns=(dataclasses.replace(column, balance=balance),)))
    place = [line.split() for line in lines].index(["en", "60", "5", "40.0"])
    assert lines[place + 1].split() == ["ja", "30", "30", "0.0"]
    assert "ja: 30 rows, no list, fallback is empty" in lines
    assert (
        "keep = 50: t = 20 is expected to give 61; t = 19 would give 48, fewer than asked (t is a whole number)"
        in lines
    )


def test_how_many_come_is_unknown_where_none_came(found: Any) -> None:
    download = Bytes("probe", 60, sample_rows=10, success_frac=0.0, failures={"error.x.dns": 10})
    rate = costs.Rate(0.1, "typical")
    made = found(
        download=download,
        costs=(
            forecast.Cost("download.fetch", 60, rate),
            forecast.Cost("score.phash", None, rate),
        ),
    )
    lines = forecast_text.lines(made)
    (line,) = [line for line in lines if line.startswith("  score.phash")]
    assert line.split(None, 2)[1:] == ["unknown", "unknown: no picture came"]
    told = forecast.record(made)["costs"][1]
    assert (told["rows"], told["seconds"], told["source"]) == (None, None, "unknown")


@pytest.mark.parametrize(
    ("fracs", "settled", "success", "words"),
    [
        ((), False, 0.5, "about 60 rows have to be fetched for 30 to come (balance)"),
        ((), False, None, "give --probe N to know how many"),
        ((), True, None, "asks for no more"),
        ((0.75,), True, None, "asks for 1.333 times 30, by what an earlier run lost"),
    ],
)
def test_the_allowance_is_told(
    found: Any, fracs: tuple[float, ...], settled: bool, success: float | None, words: str
) -> None:
    one = Allowance(1, "balance", 30, "key", fracs, settled)
    download = Bytes("probe", 60, sample_rows=10, success_frac=success, stored=1.0)
    download = download if success else Bytes("unknown", 60)
    assert words in "\n".join(forecast_text.lines(found(allowance=one, download=download)))
