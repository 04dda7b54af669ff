"""`entries build` and `entries lint` from the command line: output, exit codes, messages."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from curate.score.metadata_match import read_entries

ROOT = Path(__file__).resolve().parent.parent.parent
LIST = ["dog", "St. Louis", "Dog", "dog", "hot dog", "? !"]


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["entries", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def bad_list(tmp_path: Path) -> str:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{entry}\n" for entry in LIST))
    return str(path)


def test_build_and_lint(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("title\n" + "a red dog\n" * 3)
    out = str(tmp_path / "list.txt")
    code, told, said = invoke(
        *("build", "--out", out, "--numbers", "--corpus", str(tmp_path / "c.csv")),
        *("--column", "title", "--unigram-min-count", "2"),
    )
    assert code == 0, said
    added = {"numbers": 100, "unigrams": 3, "bigrams": 0}
    assert json.loads(told) == {
        "entries": 103,
        "added": added,
        "list": out,
        "provenance": f"{out}.provenance.json",
    }
    assert "note: no bigram can have a PMI of 30 bits" in said
    assert read_entries(out)[100:] == ["a", "dog", "red"]
    assert invoke("lint", out) == (0, f"{out}: 103 lines, 0 dead\n", "")


def test_lint_tells_kinds_and_lines(bad_list: str) -> None:
    code, out, _ = invoke("lint", bad_list)
    assert code == 1
    assert out.startswith(f"{bad_list}: 6 lines, 3 dead\n")
    assert "line 2: 'St. Louis'" in out
    assert "line 6: '? !'" in out
    code, out, _ = invoke("lint", bad_list, "--json")
    assert code == 1
    found = json.loads(out)["found"]
    assert {kind: [one["line"] for one in some] for kind, some in found.items()} == {
        "glued_punctuation": [2],
        "adjacent_punctuation": [6],
        "duplicate": [4],
        "case_twin": [3],
    }


def test_fix_keeps_the_ids(bad_list: str, tmp_path: Path) -> None:
    out = str(tmp_path / "fixed.txt")
    code, _, said = invoke("lint", bad_list, "--fix", out)
    assert code == 0
    assert read_entries(out) == ["dog", "", "Dog", "", "hot dog", ""]
    assert "6 lines, 3 entries" in said
    assert invoke("lint", out)[0] == 0


def test_renumber_leaves_the_dead_out_and_says_so(bad_list: str, tmp_path: Path) -> None:
    out = str(tmp_path / "fixed.json")
    _, _, said = invoke("lint", bad_list, "--fix", out, "--renumber")
    assert read_entries(out) == ["dog", "Dog", "hot dog"]
    assert "ids have changed" in said


def test_the_list_that_comes_along_is_fine() -> None:
    assert invoke("lint", "clip-pipe://small")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lint", "/nowhere.txt"], "no such file\nhint: "),
        (["lint", "clip-pipe://smal"], "hint: there is clip-pipe://small"),
        (["build", "--out", "x.txt"], "no source\nhint: "),
        (["build", "--out", "x.txt", "--wordnet", "/nowhere"], "neither a folder"),
        (["lint", "clip-pipe://small", "--renumber"], "--renumber goes with --fix"),
    ],
)
def test_wrong_input_exits_2(arguments: list[str], message: str) -> None:
    code, out, said = invoke(*arguments)
    assert (code, out) == (2, "")
    assert message in said


def test_an_empty_result_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a dog\n")
    code, _, said = invoke(
        "build", "--out", str(tmp_path / "l.txt"), "--corpus", str(tmp_path / "c.txt")
    )
    assert code == 2
    assert "no entry came of these sources" in said
    assert not (tmp_path / "l.txt").exists()


@pytest.mark.parametrize("command", ["build", "lint"])
def test_every_option_has_help(command: str) -> None:
    found = main.commands["entries"].commands[command]  # type: ignore[attr-defined]
    assert found.help
    for parameter in found.params:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_the_commands_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command of docs/entries.md, over files of these names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wordnet" / "dict").mkdir(parents=True)
    synset = "02084071 05 n 01 dog 0 000 | a\n09023321 15 n 01 St._Louis 0 000 | a\n"
    (tmp_path / "wordnet" / "dict" / "data.noun").write_text(synset)
    (tmp_path / "captions.txt").write_text("the beach\n" * 100)
    (tmp_path / "pageviews.gz").write_bytes(gzip.compress(b"en New_York 900 0\n"))
    (tmp_path / "rows.csv").write_text("url,caption\nhttp://host/2.jpg,the beach\n")
    (tmp_path / "recipe.toml").write_text(
        'name = "docs"\n[curate]\npool = "pool"\nshards = "shards"\n'
        '[curate.source]\nuse = "source.url_table"\npath = "rows.csv"\n'
        '[[curate.stage]]\nuse = "score.metadata_match"\nentries = "entries.txt"\n'
        '[[curate.stage]]\nuse = "filter.metadata_balance"\nt = 20\n'
    )
    page = (ROOT / "docs" / "entries.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^clip-pipe (.*)", page, re.M)
    assert len(commands) == 5
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command))
        assert done.exit_code == 0, (command, done.stderr)
    assert read_entries("entries.txt")[100:] == ["dog", "beach", "the", "New York"]
    assert "near misses" in done.stdout


@pytest.mark.parametrize("command", ["build", "lint"])
def test_a_place_that_can_t_be_written_is_told_before_any_work(
    tmp_path: Path, bad_list: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("curate.entries.build.build", never)
    monkeypatch.setattr("curate.entries.lint.lint", never)
    (tmp_path / "file").touch()
    for out, message in (
        (tmp_path / "file" / "l.txt", "can't be written"),
        (tmp_path, "is a folder"),
    ):
        options = {"build": ["--numbers", "--out"], "lint": [bad_list, "--fix"]}[command]
        code, told, said = invoke(command, *options, str(out))
        assert (code, told) == (2, "")
        assert message in said
        assert "hint: name" in said


def test_a_folder_is_linted_list_by_list(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("dog\nSt. Louis\n")
    (tmp_path / "ja.txt").write_text("カメラ\n")
    code, told, _ = invoke("lint", str(tmp_path))
    assert code == 1
    assert "en.txt: 2 lines, 1 dead" in told
    assert "ja.txt: 1 lines, 0 dead" in told
    assert "doubtful" not in told
    found = json.loads(invoke("lint", str(tmp_path), "--json")[1])
    assert {language: one["dead"] for language, one in found.items()} == {"en": 1, "ja": 0}
    code, _, said = invoke("lint", str(tmp_path), "--fix", str(tmp_path / "fixed.txt"))
    assert code == 2
    assert f"fix one file at a time, such as {tmp_path / 'en.txt'} with --rule worldwide" in said
