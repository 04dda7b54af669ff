"""A retry asks the rows that failed in the kinds named, and no others; nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

from cli import main
from curate.contract import parts
from pipelines import curation, part, retry, reuse
from pipelines.errors import RecipeError, RunFailed
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet, ledger, shard_bytes
from tests.tiny.changing_server import GET, Web, changing, write_list
from tests.tiny.stages import USE

BUSY, GONE, BROKEN = {"3", "11", "20"}, {"7", "12"}, {"5", "21"}
FAILED = {**dict.fromkeys(BUSY, 503), **dict.fromkeys(GONE, 404), **dict.fromkeys(BROKEN, 500)}
ROWS = 30


@pytest.fixture
def web() -> Iterator[Web]:
    with changing() as made:
        yield made


@pytest.fixture
def make(curate_recipe: Callable[..., Any], tmp_path: Path, web: Web) -> Callable[..., Any]:
    write_list(tmp_path / "list" / "b.parquet", web.url, 0, ROWS)

    def made(folder: str = "run", fetch: Any = None, **options: Any) -> Any:
        source = {"use": "source.url_table", "path": str(tmp_path / "list"), "rows_per_part": 8}
        stages = [
            {"use": f"{USE}:Length"},
            fetch or {"use": GET},
            {"use": f"{USE}:PictureSize"},
            {"use": f"{USE}:Common"},
            {"use": f"{USE}:Length2"},
        ]
        return curate_recipe(
            source, stages, folder=folder, shard={"samples_per_shard": 7}, **options
        )

    return made


def run(recipe: Any, kinds: str = "") -> curation.Outcome | retry.Begun:
    plan = plan_curation(recipe)
    if kinds:
        begun = retry.begin(plan, retry.parse(kinds))
        if not begun.rows:
            return begun
        plan = plan_curation(recipe)
    return curation.run(plan, LocalRunner(), Quiet(), recipe)


def reasons(recipe: Any) -> dict[str, str]:
    """Path -> kind of every row that failed."""
    return {
        row["url"].rsplit("/", 1)[-1]: row["reason"].removeprefix(f"error.{GET}.")
        for row in ledger(recipe)
        if row["reason"]
    }


@pytest.mark.parametrize(
    ("kinds", "asked"),
    [
        ("http.5xx", BUSY | BROKEN),
        ("http.503,http.404", BUSY | GONE),
        ("http.404", GONE),
        (f"error.{GET}.http.500", BROKEN),
        ("transient", BUSY | BROKEN),
        ("http", BUSY | BROKEN | GONE),
    ],
)
def test_only_the_rows_meant_are_asked(
    make: Callable[..., Any], web: Web, kinds: str, asked: set[str]
) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    assert set(reasons(recipe)) == set(FAILED)
    web.answers = {}
    web.reset()
    run(recipe, kinds)
    assert dict(web.asked) == dict.fromkeys(asked, 1)
    assert set(reasons(recipe)) == set(FAILED) - asked
    web.reset()
    outcome = run(recipe)
    assert isinstance(outcome, curation.Outcome)
    assert outcome.already_done
    assert not web.asked


def test_the_shards_are_those_of_a_run_against_the_healed_server(
    make: Callable[..., Any], web: Web
) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    before = shard_bytes(recipe)
    web.answers = dict.fromkeys(GONE, 404)
    run(recipe, "http.5xx")
    fresh = make("fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh) != before
    assert ledger(recipe) == ledger(fresh)


def test_rows_that_fail_again_can_be_asked_again(make: Callable[..., Any], web: Web) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    web.answers = {"3": 503, "11": 404, **dict.fromkeys(GONE, 404), "5": 500}
    run(recipe, "http.5xx")
    assert reasons(recipe) == {
        "3": "http.503", "11": "http.404", "5": "http.500", **dict.fromkeys(GONE, "http.404"),
    }  # fmt: skip
    web.answers = {}
    web.reset()
    run(recipe, "http.503")
    assert dict(web.asked) == {"3": 1}
    assert set(reasons(recipe)) == {"11", "5", *GONE}
    manifest = json.loads(Path(recipe.curate.shards, "manifest.json").read_text())
    first, second = manifest["retries"]
    assert (first["kinds"], first["rows"]) == (["http.5xx"], 5)
    assert first["before"] == {
        GET: {
            f"error.{GET}.http.404": 2,
            f"error.{GET}.http.500": 2,
            f"error.{GET}.http.503": 3,
        }
    }
    assert first["after"][GET][f"error.{GET}.http.503"] == 1
    assert second["before"] == first["after"]


def test_a_part_of_which_nothing_is_asked_is_linked(make: Callable[..., Any], web: Web) -> None:
    web.answers = {"3": 503}
    recipe = make()
    run(recipe)
    old = plan_curation(recipe)
    web.answers = {}
    run(recipe, "http.503")
    new = plan_curation(recipe)
    index = next(n for n, one in enumerate(new.stages) if one.use == GET)
    tars = [
        [plan.pool.images_path(plan.stages[index].fingerprint, n) for n in range(4)]
        for plan in (old, new)
    ]
    same = [os.path.samefile(*pair) for pair in zip(*tars, strict=True)]
    assert same == [False, True, True, True]
    for stage in range(index, index + 2):
        stats = [parts.read_stats(part.sidecar(new, new.stages[stage], n)) for n in range(4)]
        assert [s["rows_in"] - s["taken_over"] for s in stats] == [1, 0, 0, 0]


def test_pictures_of_before_a_retry_can_be_deleted(
    make: Callable[..., Any], web: Web, tmp_path: Path
) -> None:
    """As docs/download.md says: those that the manifest of the shards does not name."""
    web.answers = {"3": 503, "12": 404}
    recipe = make()
    run(recipe)
    web.answers = {"12": 404}
    run(recipe, "http.503")
    held = Path(recipe.curate.pool, "images")
    used = json.loads(Path(recipe.curate.shards, "manifest.json").read_text())["images"]
    older = {path.name for path in held.iterdir()} - set(used)
    assert older
    for name in older:
        shutil.rmtree(held / name)
    web.reset()
    web.answers = {}
    run(recipe, "http.404")
    assert dict(web.asked) == {"12": 1}
    fresh = make("fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)


def test_a_retry_that_died_goes_on(make: Callable[..., Any], web: Web, tmp_path: Path) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    before = shard_bytes(recipe)
    web.answers = {}
    web.reset()

    def die() -> None:
        original = part.parts.write_table

        def write(path: str, *rest: Any, **named: Any) -> Any:
            if "Get" in path and "part-00001" in path:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(path, *rest, **named)

        part.parts.write_table = write
        run(recipe, "http")

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert shard_bytes(recipe) == before, "what was there is lost"
    first = set(web.asked)
    assert first < set(FAILED)
    with pytest.raises(RecipeError, match=r"retry of http is not finished"):
        run(recipe, "http.404")
    web.reset()
    run(recipe, "http")
    assert set(web.asked) | first == set(FAILED)
    assert "3" not in web.asked, "part 0 was committed"
    assert not reasons(recipe)
    fresh = make("fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)
    assert isinstance(run(recipe, "http"), retry.Begun)


def test_without_the_option_an_open_retry_goes_on(make: Callable[..., Any], web: Web) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    retry.begin(plan_curation(recipe), ("http.404",))
    web.answers = {}
    web.reset()
    run(recipe)
    assert dict(web.asked) == dict.fromkeys(GONE, 1)
    assert retry.unfinished(plan_curation(recipe)) is None


def test_growth_and_retries(make: Callable[..., Any], web: Web, tmp_path: Path) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    web.answers = {**FAILED, "33": 503}
    run(recipe, "http.404")
    write_list(tmp_path / "list" / "c.parquet", web.url, ROWS, 8)
    new = run(recipe, "http.503")
    assert isinstance(new, retry.Begun)
    assert (new.rows, GET in new.not_run) == (0, True)
    web.reset()
    run(recipe)
    # A grown source asks what may have passed, as ever: not what lasts.
    assert set(web.asked) == BUSY | BROKEN | {str(n) for n in range(ROWS, ROWS + 8)}
    web.answers = dict.fromkeys(GONE, 404)
    web.reset()
    run(recipe, "http.503")
    assert set(web.asked) == BUSY | {"33"}
    assert set(reasons(recipe)) == GONE | BROKEN
    web.answers = {}
    run(recipe, "http")
    fresh = make("fresh")
    run(fresh)
    assert ledger(recipe) == ledger(fresh)


def test_growth_in_the_middle_of_a_retry_loses_nothing_of_it(
    make: Callable[..., Any], web: Web, tmp_path: Path
) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    retry.begin(plan_curation(recipe), ("http.404",))
    write_list(tmp_path / "list" / "c.parquet", web.url, ROWS, 8)
    web.answers = dict.fromkeys(BUSY | BROKEN, 503)
    run(recipe)
    assert set(reasons(recipe)) == BUSY | BROKEN


def test_another_option_above_takes_over_what_a_retry_brought(
    make: Callable[..., Any], web: Web
) -> None:
    web.answers = dict(FAILED)
    run(make())
    web.answers = {"12": 404}
    run(make(), "http")
    web.reset()
    web.answers = {}
    recipe = make()
    recipe.curate.stage[0].options["fail_on"] = "number 29"
    run(recipe)
    assert not web.asked, "a 404 of a retry lasts like any"
    assert reasons(recipe)["12"] == "http.404"


def command(recipe: Any, tmp_path: Path, *words: str) -> Any:
    curate = recipe.curate
    data = {
        "name": recipe.name,
        "curate": {
            "pool": curate.pool,
            "shards": curate.shards,
            "source": {"use": curate.source.use, **curate.source.options},
            "stage": [{"use": one.use, **one.options} for one in curate.stage],
            "shard": {"use": curate.shard.use, **curate.shard.options},
        },
    }
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(data))
    return CliRunner().invoke(main, [words[0], str(path), *words[1:]])


def test_a_run_that_stopped_for_its_failures_is_gone_on_with(
    make: Callable[..., Any], web: Web
) -> None:
    """Some rows of every part came, so no part is given back: the failed ones are asked by a retry."""
    web.answers = {str(n): 503 for n in range(ROWS) if n % 3}
    recipe = make(max_error_frac=0.5)
    with pytest.raises(
        RunFailed, match=r"with `--retry http.503` the same command asks all such rows again"
    ):
        run(recipe)
    came = {str(n) for n in range(0, ROWS, 3)}
    web.answers = {str(n): 503 for n in range(ROWS) if n % 3 == 1}
    web.reset()
    run(recipe, "http.503")
    assert set(web.asked) == {str(n) for n in range(ROWS)} - came
    assert len(reasons(recipe)) == 10
    # Once more, and again too many: the next retry is another one, and asks them once more.
    web.answers = {}
    web.reset()
    run(recipe, "http.5xx")
    assert len(web.asked) == 10
    assert not reasons(recipe)


def test_a_retry_that_failed_too_often_can_be_asked_again(
    make: Callable[..., Any], web: Web
) -> None:
    web.answers = {str(n): 503 for n in range(ROWS) if n % 3}
    recipe = make(max_error_frac=0.1)
    for _ in range(2):
        with pytest.raises(RunFailed):
            run(recipe, "http.503" if web.asked else "")
    assert min(web.asked[path] for path in web.answers) == 2
    web.answers = {}
    run(recipe, "http.503")
    assert not reasons(recipe)


def test_a_retry_that_stopped_early_is_asked_anew(
    make: Callable[..., Any], web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rows of each part come, so none is given back; the command that is advised asks the others."""
    monkeypatch.setattr(curation, "_EARLY_STOP_ROWS", 10)
    down = {str(n): 503 for n in range(ROWS) if n % 8}
    lasts = {
        "1": 404,
        "25": 404,
    }  # in the first part, which is asked, and in the last, which is not
    web.answers = {**down, **lasts}
    recipe = make(max_error_frac=0.5)
    asked: list[set[str]] = []
    for _ in range(3):
        web.reset()
        with pytest.raises(RunFailed, match=r"--retry http\.503"):
            run(recipe, "http.503" if asked else "")
        asked.append(set(web.asked))
    assert asked[0] == {str(n) for n in range(16)}
    failed = set(down) & asked[0] - set(lasts)
    assert asked[1:] == [failed, failed], "not asked again"
    assert retry.unfinished(plan_curation(recipe)) is None
    web.answers = dict(lasts)
    web.reset()
    run(recipe, "http.503")
    assert failed <= set(web.asked)
    assert not {"0", "8", "1"} & set(web.asked), "they had come, or last"
    assert reasons(recipe) == {"1": "http.404", "25": "http.404"}
    fresh = make("fresh")
    run(fresh)
    assert shard_bytes(recipe) == shard_bytes(fresh)
    states = [entry.get("finished") for entry in described(recipe)["retries"]]
    assert states == [True, True, True], "all are over"


def test_the_rest_of_a_stopped_retry_is_the_next_one_s(
    make: Callable[..., Any], web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.answers = dict(FAILED)
    recipe = make(max_error_frac=0.5)
    run(recipe)
    plan = plan_curation(recipe)
    retry.begin(plan, ("http.404",))
    retry.stop(plan_curation(recipe), f"{USE}:Length")
    assert retry.unfinished(plan_curation(recipe)) is not None, "another stage's failures"
    retry.stop(plan_curation(recipe), GET)
    web.answers = {}
    web.reset()
    run(recipe, "http.500")
    assert dict(web.asked) == dict.fromkeys(GONE | BROKEN, 1), (
        "404 had not been asked; 503 was not meant"
    )


def described(recipe: Any) -> dict[str, Any]:
    return dict(json.loads(Path(recipe.curate.pool, "pool.json").read_text()))


def test_another_recipe_over_the_pool_leaves_an_open_retry_as_it_is(
    make: Callable[..., Any], web: Web, tmp_path: Path
) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    other = dataclasses.replace(
        recipe,
        name="other",
        curate=dataclasses.replace(recipe.curate, shards=str(tmp_path / "other")),
    )
    text = dataclasses.replace(
        other, curate=dataclasses.replace(other.curate, stage=recipe.curate.stage[:1])
    )
    run(text)
    retry.begin(plan_curation(recipe), ("http.404",))
    before = described(recipe)
    web.answers = dict(FAILED)
    web.reset()
    for _ in range(2):  # the second time there is nothing to do
        run(text)
    assert not web.asked
    run(other)
    assert not web.asked, "this retry is none of its own"
    assert described(recipe) == before
    # Its own retry, of other kinds, is not taken for the first recipe's.
    web.answers = dict.fromkeys(GONE, 404)
    web.reset()
    run(other, "http.5xx")
    assert set(web.asked) == BUSY | BROKEN
    assert "retries" not in json.loads(Path(recipe.curate.shards, "manifest.json").read_text())
    web.answers = {}
    web.reset()
    run(recipe)
    assert set(web.asked) == GONE | BUSY | BROKEN or set(web.asked) == GONE
    assert set(reasons(recipe)) <= BUSY | BROKEN
    owners = [(one["recipe"], one.get("finished")) for one in described(recipe)["retries"]]
    assert owners == [("test", True), ("other", True)]


def test_a_text_variant_of_the_recipe_closes_no_retry(
    make: Callable[..., Any], web: Web, tmp_path: Path
) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    retry.begin(plan_curation(recipe), ("http.404",))
    curate = dataclasses.replace(
        recipe.curate, stage=recipe.curate.stage[:1], shards=str(tmp_path / "text")
    )
    run(dataclasses.replace(recipe, curate=curate))
    assert retry.unfinished(plan_curation(recipe)) is not None


def test_shards_made_anew_have_the_same_manifest(make: Callable[..., Any], web: Web) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    run(recipe)
    run(recipe, "http")
    manifest = Path(recipe.curate.shards, "manifest.json")
    before = manifest.read_text()
    assert set(json.loads(before)["retries"][0]) == {"kinds", "rows", "before", "after"}
    shutil.rmtree(recipe.curate.shards)
    run(recipe)
    assert manifest.read_text() == before


def test_the_newest_run_comes_first(make: Callable[..., Any], web: Web) -> None:
    web.answers = dict(FAILED)
    recipe = make()
    ran = []
    for kinds in ("", "http", "http", "http"):
        run(recipe, kinds)
        plan = plan_curation(recipe)
        ran.append(next(one for one in plan.stages if one.use == GET))
    other = dataclasses.replace(ran[-1], fingerprint="0" * 64)
    found = [one.fingerprint for one in reuse.fingerprints(plan, other)]
    assert found == [one.fingerprint for one in reversed(ran)]


def test_the_command_says_what_there_is(make: Callable[..., Any], web: Web, tmp_path: Path) -> None:
    recipe = make()
    new = command(recipe, tmp_path, "curate", "--local", "--retry", "timeout")
    assert new.exit_code == 0
    assert (
        f"{USE}:Length has not run for all rows yet; run `clip-pipe curate` without --retry"
        in new.stderr
    )
    assert not Path(recipe.curate.pool, "pool.json").exists()
    web.answers = dict(FAILED)
    assert command(recipe, tmp_path, "curate", "--local").exit_code == 0
    none = command(recipe, tmp_path, "curate", "--local", "--retry", "dns")
    assert none.exit_code == 0
    assert f"{GET}: http.503 3, http.404 2, http.500 2" in none.stderr
    told = json.loads(none.stdout)
    assert told["retried"] == 0
    assert told["failures"][GET][f"error.{GET}.http.503"] == 3
    web.answers = {}
    some = command(recipe, tmp_path, "curate", "--local", "--retry", "http.5xx")
    assert some.exit_code == 0
    assert "5 rows are asked again" in some.stderr
    assert json.loads(some.stdout)["kept"] == ROWS - 2
    plan = command(recipe, tmp_path, "plan")
    assert "retry 1   done  http.5xx  5 rows" in plan.stdout
    for words in (("whatif",), ("report",), ("forecast", "--local")):
        done = command(recipe, tmp_path, *words)
        assert done.exit_code == 0, (words, done.stderr, done.exception)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ("timeuot", "did you mean 'timeout'"),
        (
            "nothing like it",
            "it is http.CODE (http.503; x is any digit, as in http.5xx) or one of: ",
        ),
        ("", "--retry: no kind of failure is named"),
        (" ", "hint: name some"),
        ("http.5x", "no such kind"),
        ("http.603", "no such kind"),
        ("timeout,,dns", "item 2 of 3 is empty"),
        ("error.download.fetsh.dns", "no stage of this recipe"),
        (f"error.{GET}.dsn", "no such kind"),
    ],
)
def test_a_kind_that_is_none_is_refused(
    make: Callable[..., Any], tmp_path: Path, kinds: str, words: str
) -> None:
    done = command(make(), tmp_path, "curate", "--local", "--retry", kinds)
    assert done.exit_code == 2
    assert words in done.stderr


def test_download_fetch_asks_only_the_rows_meant(make: Callable[..., Any], web: Web) -> None:
    web.answers = dict(FAILED)
    recipe = make(fetch=web.fetch())
    run(recipe)
    web.answers = {}
    web.reset()
    run(recipe, "http.5xx")
    assert dict(web.asked) == dict.fromkeys(BUSY | BROKEN, 1)
    left = {row["url"].rsplit("/", 1)[-1]: row["reason"] for row in ledger(recipe) if row["reason"]}
    assert left == dict.fromkeys(GONE, "error.download.fetch.http.404")
