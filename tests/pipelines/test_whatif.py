"""What-if: a pool's own recipe is what is now; filters can be tried, measures can't, and the words say so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from click.testing import CliRunner

from cli import main
from pipelines import recipe, whatif
from pipelines.errors import RecipeError
from tests.pipelines.test_funnel import FETCH, SOURCE, stages


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with r.toml, its pool and its shards."""
    folder = tmp_path_factory.mktemp("whatif")
    (folder / "entries.txt").write_text("word0\nword1\nnumber\n1\n2\n17\n33\n")
    write(folder, stages(folder / "entries.txt")[:6])
    result = CliRunner().invoke(main, ["curate", str(folder / "r.toml"), "--local"])
    assert result.exit_code == 0, result.stderr
    return folder


def write(folder: Path, stage: list[dict[str, Any]], name: str = "r.toml", **more: Any) -> str:
    curate = {key: str(folder / key) for key in ("pool", "shards")}
    data = {"name": "tried", "curate": {**curate, "source": SOURCE, "stage": stage}, **more}
    (folder / name).write_text(tomli_w.dumps(data))
    return str(folder / name)


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["whatif", *arguments])
    return result.exit_code, result.stdout, result.stderr


def columns(*arguments: str) -> dict[str, dict[str, Any]]:
    code, out, err = invoke(*arguments, "--json")
    assert code == 0, err
    return {column["name"]: column for column in json.loads(out)["columns"]}


def test_a_pool_knows_what_it_was_made_by(ran: Path) -> None:
    manifest = json.loads((ran / "shards" / "manifest.json").read_text())
    found = columns(str(ran / "pool"), "--set", "curate.stage.metadata_balance.t=4")
    assert found["now"]["kept"] == manifest["kept"] > found["what-if"]["kept"] > 0
    assert [s["kept"] for s in found["now"]["stages"]] == [s["kept"] for s in manifest["stages"]]
    assert found["what-if"]["bound"] == "exact"


def test_a_recipe_named_means_the_run_of_its_pool(ran: Path) -> None:
    """The recipe may have been edited since: what is now is what the pool was made by."""
    edited = write(ran, stages(ran / "entries.txt", t=5)[:6], "edited.toml")
    found = columns(edited, "--set", "curate.stage.filter.metadata_balance.t=4")
    assert found == columns(str(ran / "pool"), "--set", "curate.stage.3.t=4")


def test_without_the_pool_s_recipe_filters_are_tried_and_the_rest_names_the_run(
    ran: Path, tmp_path: Path
) -> None:
    other = tmp_path / "copy"
    shutil.copytree(ran / "pool", other)
    (other / "recipe.toml").unlink()
    with pytest.raises(RecipeError, match=r"no recipe.toml.*\nhint: name the recipe"):
        whatif.compare(str(other), [])
    sets = [f"curate.pool={other}", "curate.stage.metadata_balance.t=4"]
    (_, now), (_, tried) = whatif.compare(str(ran / "r.toml"), sets)
    wanted = columns(str(ran / "pool"), "--set", "curate.stage.3.t=4")
    assert (now.kept, tried.kept) == (wanted["now"]["kept"], wanted["what-if"]["kept"])


def test_thresholds_side_by_side(ran: Path) -> None:
    found = columns(str(ran / "pool"), "--t", "2,4,0.04k")
    assert list(found) == ["now", "t = 2", "t = 4", "t = 40"]
    assert found["t = 40"]["kept"] == found["now"]["kept"]
    assert found["t = 2"]["kept"] < found["t = 4"]["kept"] < found["now"]["kept"]
    out = invoke(str(ran / "pool"), "--t", "2,4")[1]
    assert "beside now" in out


def test_the_table_tells_stages_reasons_and_differences(ran: Path) -> None:
    out = invoke(str(ran / "pool"), "--set", "curate.stage.metadata_balance.t=80")[1]
    assert out.startswith("with curate.stage.metadata_balance.t=80\n")
    head = out.splitlines()[1].split()
    assert head[-3:] == ["now", "what-if", "difference"]
    assert head[:5] == ["rows", "that", "reach", "a", "stage,"]
    rows = {line[:40].strip().rsplit("  ")[0]: line.split() for line in out.splitlines()}
    assert any("(never measured)" in name for name in rows)
    assert f"would reach {FETCH} and were never measured there" in out
    assert "about so many" in out
    assert any(line.endswith("=") for line in out.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("curate.stage.1.entries={d}/other.txt", "score.metadata_match measures, and the pool holds no values of it with these options\nhint: whatif tries options of filters"),
        ("curate.stage.4.dead=word2", f"{FETCH} measures"),
        ("curate.stage.metadata_balance.tt=4", "has no option 'tt'\nhint: did you mean 't'?"),
        ("curate.stage=[]", "the scenario has other stages than the run it is compared with"),
        ("curate.source.count=4", "the pool holds rows of another source"),
    ],
)  # fmt: skip
def test_what_can_t_be_tried_is_said_with_a_hint(ran: Path, change: str, message: str) -> None:
    (ran / "other.txt").write_text("word2\n")
    code, out, err = invoke(str(ran / "pool"), "--set", change.replace("{d}", str(ran)))
    assert (code, out) == (2, "")
    assert message in err


def test_a_pool_that_was_moved_is_read_where_it_is(ran: Path, tmp_path: Path) -> None:
    shutil.copytree(ran / "pool", tmp_path / "elsewhere")
    wanted = columns(str(ran / "pool"), "--t", "4")
    for part in (tmp_path / "elsewhere").rglob("part-00001.parquet"):
        part.unlink()
    code, _, err = invoke(str(tmp_path / "elsewhere"), "--t", "4")
    assert (code, "1 of 2 parts of the source are not read in yet" in err) == (2, True)
    shutil.rmtree(tmp_path / "elsewhere")
    (ran / "pool").rename(tmp_path / "elsewhere")
    try:
        assert columns(str(tmp_path / "elsewhere"), "--t", "4") == wanted
    finally:
        (tmp_path / "elsewhere").rename(ran / "pool")


def test_another_seed_is_a_run_with_that_seed(ran: Path, tmp_path: Path) -> None:
    found = columns(str(ran / "pool"), "--set", "seed=5")["what-if"]
    stage = stages(ran / "entries.txt")[:4]
    curate = {"pool": str(tmp_path / "pool"), "shards": str(tmp_path / "shards")}
    seeded = write(ran, stage, "seed5.toml", seed=5)
    sets = [text for key, value in curate.items() for text in ("--set", f"curate.{key}={value}")]
    assert CliRunner().invoke(main, ["curate", seeded, "--local", *sets]).exit_code == 0
    fresh = columns(str(tmp_path / "pool"))["now"]
    assert found["stages"][: len(fresh["stages"])] == fresh["stages"]
    assert fresh["stages"][-1] != columns(str(ran / "pool"))["now"]["stages"][4]


def test_an_edited_recipe_is_compared_with_the_run(ran: Path) -> None:
    assert list(columns(str(ran / "r.toml"))) == ["now"]
    edited = write(ran, stages(ran / "entries.txt", t=5)[:6], "edited.toml")
    found = columns(edited)
    assert list(found) == ["now", "as edited"]
    wanted = columns(str(ran / "pool"), "--t", "5")
    assert [found[n]["kept"] for n in found] == [wanted[n]["kept"] for n in ("now", "t = 5")]
    other = stages(ran / "entries.txt")[:6]
    other[4] = {**other[4], "dead": "word2"}
    code, _, err = invoke(write(ran, other, "other.toml"))
    assert code == 2
    assert "has other options now: " in err
    assert "the pool holds no values of it with these options" in err


def test_a_folder_that_is_no_pool_is_said_and_the_pool_in_it_named(
    ran: Path, tmp_path: Path
) -> None:
    for where, hint in (
        (ran, f"did you mean {ran}/pool?"),
        (tmp_path, "name a pool's folder"),
        (tmp_path / "gone" / "pool", "name a pool's folder"),
    ):
        code, out, err = invoke(str(where))
        assert (code, out) == (2, "")
        assert "no pool is there (no pool.json)" in err
        assert hint in err
    assert "no such recipe file" in invoke("metaclib")[2]


@pytest.mark.parametrize("solved", ["keep=30", "tail_share=0.2"])
def test_another_way_to_say_the_threshold_takes_the_place_of_t(ran: Path, solved: str) -> None:
    found = columns(str(ran / "pool"), "--set", f"curate.stage.metadata_balance.{solved}")
    stage = stages(ran / "entries.txt")[:6]
    name, value = solved.split("=")
    stage[3] = {
        "use": "filter.metadata_balance",
        name: float(value) if "." in value else int(value),
    }
    assert found["what-if"]["kept"] == columns(write(ran, stage, "as.toml"))["as edited"]["kept"]
    both = [f"curate.stage.metadata_balance.{text}" for text in (solved, "t=4")]
    code, _, err = invoke(str(ran / "pool"), "--set", both[0], "--set", both[1])
    assert (code, "is given. hint" in err or "set one of t" in err) == (2, True)
    code, out, err = invoke(str(ran / "pool"), "--set", both[0], "--t", "5")
    assert (code, out) == (2, "")
    assert f"{name} and --t decide the same threshold" in err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with a recipe over a list of files with a column of its own, and its pool."""
    (tmp_path / "in").mkdir()
    rows = {
        "url": ["http://x/1", "http://x/2"],
        "caption": ["word0", "word1"],
        "tongue": ["en", "de"],
    }
    pq.write_table(pa.table(rows), tmp_path / "in" / "a.parquet")
    (tmp_path / "entries.txt").write_text("word0\nword1\n")
    source = {"use": "source.url_table", "path": str(tmp_path / "in"), "keep_columns": ["tongue"]}
    stage = [
        {"use": "score.metadata_match", "entries": str(tmp_path / "entries.txt")},
        {"use": "filter.metadata_balance", "t": 1, "by": "tongue"},
        {"use": "filter.threshold", "column": "tongue", "equals": "en"},
    ]
    curate = {key: str(tmp_path / key) for key in ("pool", "shards")}
    data = {"name": "table", "curate": {**curate, "source": source, "stage": stage}}
    (tmp_path / "r.toml").write_text(tomli_w.dumps(data))
    result = CliRunner().invoke(main, ["curate", str(tmp_path / "r.toml"), "--local"])
    assert result.exit_code == 0, result.stderr
    return tmp_path


@pytest.mark.parametrize("named", ["pool", "r.toml"])
def test_the_source_is_not_needed(table: Path, named: str) -> None:
    change = ("--set", "curate.stage.threshold.equals=de")
    wanted = columns(str(table / named), *change)
    assert wanted["what-if"]["bound"] == "exact"
    shutil.rmtree(table / "in")
    assert columns(str(table / named), *change) == wanted
    assert invoke(str(table / named), *change)[2] == ""
    assert not (table / "in").exists()


def test_files_that_are_not_read_in_yet_do_not_count_and_are_told(table: Path) -> None:
    wanted = columns(str(table / "pool"))
    shutil.copy(table / "in" / "a.parquet", table / "in" / "b.parquet")
    assert columns(str(table / "pool")) == wanted
    err = invoke(str(table / "pool"))[2]
    assert err.startswith("note: 1 files of the source are not read in yet")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--set", "curate.stage.metadata_balance.reference=xx"), 1, 'reference = "xx", but no kept row'),
        (("--t", "99999999999999999999999"), 2, "more rows than any pool has"),
        (("--set", "curate.stage.metadata_balance.t=99999999999999999999999"), 2, "more rows than any pool has"),
        (("--t", "5k,,6k"), 2, "item 2 of 3 is empty"),
        (("--t", "5,"), 2, "item 2 of 2 is empty"),
    ],
)  # fmt: skip
def test_no_traceback(table: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = CliRunner().invoke(main, ["whatif", str(table / "pool"), *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr


def test_t_takes_the_place_of_what_solved_it(ran: Path) -> None:
    solved = stages(ran / "entries.txt")
    solved[3] = {"use": "filter.metadata_balance", "keep": 30}
    changed = whatif.with_t(recipe.load(write(ran, solved, "solved.toml")), 7)
    assert changed.curate is not None
    assert changed.curate.stage[3].options == {"t": 7}
    with pytest.raises(RecipeError, match=r"0 stages filter\.metadata_balance"):
        whatif.with_t(recipe.load(write(ran, solved[:3], "none.toml")), 7)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("5k,20_000,1M", (5_000, 20_000, 1_000_000)), ("", ()), ("1.5k", (1_500,))],
)
def test_numbers_of_rows(text: str, numbers: tuple[int, ...]) -> None:
    assert whatif.parse_ts(text) == numbers


@pytest.mark.parametrize("text", ["5x", "0", "1.5", "k", "nan", "9e99", "infk", "-3"])
def test_what_is_no_number_of_rows_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"no whole number of rows|more rows than"):
        whatif.parse_ts(text)
