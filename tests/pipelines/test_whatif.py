"""What-if: a pool's own recipe is what is now; filters can be tried, measures can't, and the words say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

from cli import main
from pipelines import recipe, whatif
from pipelines.errors import RecipeError
from tests.pipelines.test_funnel import SOURCE, stages


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
    import shutil

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
    assert head == ["now", "what-if", "difference"]
    rows = {line[:40].strip().rsplit("  ")[0]: line.split() for line in out.splitlines()}
    assert any("(never measured)" in name for name in rows)
    assert "would reach tests.tiny.stages:Picture and were never measured there" in out
    assert "about so many" in out
    assert any(line.endswith("=") for line in out.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("curate.stage.1.entries={d}/other.txt", "score.metadata_match measures, and the pool holds no values of it with these options\nhint: whatif tries options of filters"),
        ("curate.stage.4.dead=word2", "tests.tiny.stages:Picture measures"),
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


@pytest.mark.parametrize("text", ["5x", "0", "1.5", "5k,,6k", "k", "nan", "infk", "-3"])
def test_what_is_no_number_of_rows_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="no whole number of rows"):
        whatif.parse_ts(text)
