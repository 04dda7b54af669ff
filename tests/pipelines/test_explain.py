"""What explain says of a pair is what a real run decided about it; what it can't know it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from click.testing import CliRunner

from cli import main
from curate.contract.draw import draw
from pipelines import curation
from pipelines import explain as explaining
from pipelines.errors import RecipeError
from pipelines.explain import Question, explain
from pipelines.plan import plan_curation
from pipelines.progress import for_stream
from pipelines.recipe import load
from pipelines.run_local import LocalRunner

ENTRIES = ["a", "dog", "red", "hot dog", "zebra", "unused"]
CAPTIONS = ["a dog", "a red dog", "red", "a hot dog", "none of it", "a zebra"]


def ran(folder: Path, column: str = "tongue", **balance: Any) -> str:
    """A recipe that was run, over 60 rows in two languages."""
    pq.write_table(
        pa.table(
            {
                "url": [f"http://x/{n}.jpg" for n in range(60)],
                "caption": [CAPTIONS[n % len(CAPTIONS)] for n in range(60)],
                column: ["en" if n % 4 else "de" for n in range(60)],
            }
        ),
        folder / "rows.parquet",
    )
    (folder / "entries.txt").write_text("\n".join(ENTRIES) + "\n")
    source = {"use": "source.url_table", "path": str(folder / "rows.parquet")}
    data = {
        "name": "explained",
        "seed": 3,
        "curate": {
            "pool": str(folder / "pool"),
            "shards": str(folder / "shards"),
            "source": {**source, "rows_per_part": 25, "keep_columns": [column]},
            "stage": [
                {"use": "score.metadata_match", "entries": str(folder / "entries.txt")},
                {"use": "filter.metadata_balance", **balance},
            ],
        },
    }
    path = folder / "r.toml"
    path.write_text(tomli_w.dumps(data))
    curation.run(plan_curation(load(str(path))), LocalRunner(), for_stream())
    return str(path)


def decisions(folder: Path) -> dict[str, str | None]:
    """url -> the reason the balance gave, None where it kept the row."""
    rows, reasons = [], []
    for part in range(3):
        rows += pq.read_table(folder / f"pool/rows/part-{part:05d}.parquet")["url"].to_pylist()
        (sidecar,) = folder.glob(f"pool/columns/filter.metadata_balance-*/part-{part:05d}.parquet")
        reasons += pq.read_table(sidecar)["reason"].to_pylist()
    return dict(zip(rows, reasons, strict=True))


@pytest.mark.parametrize(
    "balance",
    [
        {"t": 3},
        {"t": 3, "keep_unmatched": True, "salt": "other"},
        {"tail_share": 0.3},
        {"keep": 20},
    ],
)
def test_it_says_what_a_run_decided(tmp_path: Path, balance: dict[str, Any]) -> None:
    recipe = ran(tmp_path, **balance)
    decided = decisions(tmp_path)
    assert {None, "balanced"} <= set(decided.values())
    for n in range(0, 60, 5):
        url = f"http://x/{n}.jpg"
        answer = explain(Question(caption=CAPTIONS[n % len(CAPTIONS)], recipe=recipe, url=url))
        assert answer.keep is (decided[url] is None), answer
        assert answer.reason == decided[url]


def test_groups_are_explained_by_their_own_counts(tmp_path: Path) -> None:
    recipe = ran(tmp_path, t=3, by="tongue", reference="")
    decided = decisions(tmp_path)
    for n in range(0, 60, 5):
        url, tongue = f"http://x/{n}.jpg", "en" if n % 4 else "de"
        answer = explain(
            Question(caption=CAPTIONS[n % len(CAPTIONS)], recipe=recipe, url=url, group=tongue)
        )
        assert answer.reason == decided[url], answer
    with pytest.raises(
        RecipeError, match="apart by 'tongue'\nhint: say which: --group VALUE, one of de, en"
    ):
        explain(Question(caption="a dog", recipe=recipe, language="en"))
    with pytest.raises(RecipeError, match="no row of the pool that matches has 'fr'"):
        explain(Question(caption="a dog", recipe=recipe, group="fr"))
    arguments = ["explain", "a dog", "--recipe", recipe, "--group", "de", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["matched"][0]["count"] < 40


def test_a_language_is_the_group_where_rows_are_balanced_by_it(tmp_path: Path) -> None:
    recipe = ran(tmp_path, column="language", t=3, by="language", reference="")
    with pytest.raises(RecipeError, match="say which: --language VALUE, one of de, en"):
        explain(Question(caption="a dog", recipe=recipe))
    by_language = explain(Question(caption="a dog", recipe=recipe, language="de"))
    assert by_language.matched[0].p is not None
    assert by_language.matched[0].p < 1
    by_group = explain(Question(caption="a dog", recipe=recipe, group="de"))
    assert by_group.matched == by_language.matched


def test_figures(tmp_path: Path) -> None:
    recipe = ran(tmp_path, t=10)
    answer = explain(Question(caption="a DOG, red", recipe=recipe, url="u"))
    assert [(one.id, one.entry, one.count, one.t) for one in answer.matched] == [
        (0, "a", 40, 10),
        (2, "red", 20, 10),
    ]
    assert [one.p for one in answer.matched] == [0.25, 0.5]
    assert answer.probability == 1 - 0.75 * 0.5
    assert answer.draw == draw(str(answer.uid), "balance:3")
    assert answer.keep is (answer.probability > answer.draw)
    assert [(one.entry, one.why) for one in answer.near_misses] == [
        ("dog", "upper and lower case differ")
    ]
    assert str(answer.counts_from).startswith(str(tmp_path / "pool"))


def test_another_t_and_the_pool_alone(tmp_path: Path) -> None:
    recipe = ran(tmp_path, t=10)
    entries, pool = str(tmp_path / "entries.txt"), str(tmp_path / "pool")
    with_recipe = explain(Question(caption="a red dog", recipe=recipe, url="u"))
    assert (
        explain(Question(caption="a red dog", entries=entries, pool=pool, url="u")) == with_recipe
    )
    other = explain(Question(caption="a", recipe=recipe, t=4))
    assert (other.probability, other.keep) == (pytest.approx(0.1), None)
    assert "with --url the draw is known" in other.why


def test_an_entry_that_no_row_holds_is_kept_for_certain(tmp_path: Path) -> None:
    recipe = ran(tmp_path, keep=20)
    answer = explain(Question(caption="a unused", recipe=recipe))
    assert (answer.matched[1].count, answer.matched[1].p) == (0, 1.0)
    assert (answer.probability, answer.keep) == (1.0, True)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    entries = tmp_path / "entries.txt"
    entries.write_text("dog\n")
    alone = explain(Question(caption="dog", entries=str(entries)))
    assert (alone.keep, alone.probability) == (None, None)
    assert "no entry counts" in alone.why
    unmatched = explain(Question(caption="(dog)", entries=str(entries)))
    assert (unmatched.keep, unmatched.reason) == (False, "unmatched")
    assert "dog: punctuation is in the way" in explaining.to_text(unmatched)
    assert json.loads(explaining.to_json(unmatched))["near_misses"][0]["id"] == 0


def test_lists_by_language(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("camera\n")
    (tmp_path / "ja.txt").write_text("x\nカメラ\n")
    folder = str(tmp_path)
    answer = explain(Question(caption="新しいカメラ", entries=folder, language="ja"))
    assert [(one.id, one.entry) for one in answer.matched] == [(1, "カメラ")]
    listless = explain(Question(caption="camera", entries=folder, language="fr"))
    assert (listless.matched, listless.reason) == ([], "unmatched")
    assert listless.why.startswith("there is no list for fr, and `fallback` is empty")
    assert "matched      nothing: no list" in explaining.to_text(listless)
    with pytest.raises(RecipeError, match="say which: --language"):
        explain(Question(caption="camera", entries=folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --recipe and --entries"),
        (["--entries", "x", "--recipe", "y"], "one of --recipe and --entries"),
        (["--entries", "/nowhere.txt"], "no such file"),
        (["--entries", "clip-pipe://small", "--pool", "/nowhere"], "no balance is counted"),
        (["--recipe", "clip_b32"], "no [curate] table"),
    ],
)
def test_wrong_input_exits_2(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["explain", "a dog", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_command(tmp_path: Path) -> None:
    recipe = ran(tmp_path, t=10)
    done = CliRunner().invoke(main, ["explain", "a red dog", "--recipe", recipe, "--url", "u"])
    assert done.exit_code == 0, done.stderr
    assert "probability  " in done.stdout
    assert "decision     " in done.stdout
    done = CliRunner().invoke(main, ["explain", "a", "--recipe", recipe, "--t", "4", "--json"])
    assert json.loads(done.stdout)["probability"] == pytest.approx(0.1)
