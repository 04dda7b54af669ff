"""Commands: bad sources end before any work, with path, what and hint; odd rows never end a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import commands
from pipelines.errors import RecipeError


def write(folder: Path, path: str, **source: Any) -> str:
    import tomli_w

    entries = folder / "entries.txt"
    entries.write_text("dog\ncat\nred\n")
    recipe = {
        "name": "text",
        "curate": {
            "pool": str(folder / "pool"),
            "shards": str(folder / "shards"),
            "source": {"use": "source.url_table", "path": path, **source},
            "stage": [
                {"use": "score.metadata_match", "entries": str(entries)},
                {"use": "filter.metadata_balance", "t": 1000},
            ],
        },
    }
    target = folder / "r.toml"
    target.write_text(tomli_w.dumps(recipe))
    return str(target)


def table(folder: Path, **columns: Any) -> str:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_odd_rows_get_reasons_and_the_run_goes_on(tmp_path: Path) -> None:
    captions = [b"a dog", None, b"a cat", b"x" * 1_000_001, b"caf\xe9 dog", b"  ", b"a dog", b"red"]
    urls = ["u0", "u1", None, "u3", "u4", "u5", "u0", "u7"]
    path = table(tmp_path, url=pa.array(urls), caption=pa.array(captions, pa.binary()))
    told = json.loads(
        commands.curate(
            write(tmp_path, path), ["curate.max_error_frac=0.9"], local=True, address="", workers=0
        )
    )
    ledger = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert len(ledger) == told["rows_in"] == 8
    kinds = [(row["reason"] or "").rsplit(".", 1)[-1] for row in ledger]
    assert kinds == [
        "",
        "null_caption",
        "null_url",
        "too_long",
        "not_utf8",
        "null_caption",
        "pair",
        "",
    ]
    kept = pq.read_table(tmp_path / "shards" / "kept.parquet")
    assert kept["caption"].to_pylist() == ["a dog", "red"]
    assert told["kept"] == 2


def test_numbers_for_captions_are_told_row_by_row(tmp_path: Path) -> None:
    path = table(tmp_path, url=["u0", "u1"], caption=[1, 2])
    commands.curate(
        write(tmp_path, path), ["curate.max_error_frac=1.0"], local=True, address="", workers=0
    )
    reasons = pq.read_table(tmp_path / "shards" / "ledger.parquet")["reason"].to_pylist()
    assert reasons == ["error.source.url_table.not_text"] * 2


def missing(folder: Path) -> str:
    return str(folder / "nowhere.parquet")


def empty(folder: Path) -> str:
    return table(folder, url=pa.array([], pa.string()), caption=pa.array([], pa.string()))


def unreadable(folder: Path) -> str:
    path = folder / "rows.parquet"
    path.write_bytes(b"PAR1 this is no parquet file")
    return str(path)


def other_columns(folder: Path) -> str:
    return table(folder, url=["u"], captoin=["c"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (missing, "no such file"),
        (empty, "empty"),
        (unreadable, "parquet"),
        (other_columns, "captoin"),
    ],
)
@pytest.mark.parametrize("command", ["check", "curate", "plan"])
def test_unusable_sources_end_before_any_work(
    tmp_path: Path, make: Any, message: str, command: str
) -> None:
    recipe = write(tmp_path, make(tmp_path))
    commanded = {
        "check": lambda: commands.check(recipe),
        "plan": lambda: commands.plan(recipe),
        "curate": lambda: commands.curate(recipe, (), local=True, address="", workers=0),
    }
    with pytest.raises(RecipeError) as fault:
        commanded[command]()
    assert message in str(fault.value)
    assert "hint:" in str(fault.value)
    assert not (tmp_path / "pool").exists()


def test_a_pool_of_a_source_that_changed_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, url=["u0"], caption=["a dog"])
    recipe = write(tmp_path, path)
    commands.curate(recipe, (), local=True, address="", workers=0)
    table(tmp_path, url=["u0", "u1"], caption=["a dog", "a cat"])
    with pytest.raises(RecipeError, match="the source's files changed"):
        commands.curate(recipe, (), local=True, address="", workers=0)


def test_list_names_every_kind(tmp_path: Path) -> None:
    text = commands.list_components()
    for word in ("source.url_table", "filter.metadata_balance", "infonce", "zero_shot", "clip_b32"):
        assert word in text
    assert "filter.metadata_balance" not in commands.list_components("source")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("filter.near_duplicate", "radius: bits in which copies differ"),
        ("score.clip_score", "checkpoint: the weights"),  # of the base class whose options it has
        ("infonce", "`init_temperature` 0 starts from"),  # read from the source text
    ],
)
def test_show_says_what_options_mean(use: str, words: str) -> None:
    table, _, told = commands.show(use).partition("\n\n")
    assert use in table
    assert words in told


@pytest.mark.parametrize("what", ["objective.sigmoid", "tweak.patch_drop", "view.short_text"])
def test_show_takes_a_room_and_a_name(what: str) -> None:
    assert commands.show(what) == commands.show(what.partition(".")[2])
    with pytest.raises(RecipeError, match=f"did you mean '{what}'"):
        commands.show(what + "s")


def test_show_resolves_a_parent() -> None:
    text = commands.show("demo_curated", ["seed=4"])
    assert "extends" not in text
    assert "vit_tiny_64" in text
    assert "seed = 4" in text
