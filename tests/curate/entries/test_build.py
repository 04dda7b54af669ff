"""A list in a fixed order from each source, nothing in it that can't match, old ids kept, provenance true."""

from __future__ import annotations

import bz2
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from curate.contract import storage
from curate.entries import build as building
from curate.entries.build import Sources, build, write
from curate.entries.lint import lint
from curate.score.metadata_match import Matcher, read_entries


def corpus(folder: Path) -> str:
    """ "hot dog" is a fixed phrase: 8 of 8; the other words come in any order."""
    path = folder / "corpus.txt"
    lines = ["a hot dog", "a big cat, a U.S. dog", "cat a big"] * 8 + ["rare words here"]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def every_source(folder: Path) -> Sources:
    (folder / "names.txt").write_text("hot_dog\nSt._Louis\n?\nDog\nabaxial\n12\n")
    (folder / "titles").write_text(
        "Dog\t900\nBig Ben\t80\nHot dog\t80\nToo few\t69\nSt. Louis\t500\n"
    )
    text = "<mediawiki><page><ns>0</ns><text>big [[cat]]</text></page></mediawiki>"
    (folder / "wiki.xml.bz2").write_bytes(bz2.compress(text.encode()))
    return Sources(
        numbers=True,
        wordnet=str(folder / "names.txt"),
        corpus=(corpus(folder),),
        wikipedia=(str(folder / "wiki.xml.bz2"),),
        unigram_min_count=8,
        bigram_min_pmi=1.7,
        bigram_min_count=9,
        titles=(str(folder / "titles"),),
    )


def test_sources_in_order_then_by_count_then_by_text(tmp_path: Path) -> None:
    built = build(every_source(tmp_path))
    assert built.entries[:100] == [str(number) for number in range(100)]
    assert built.entries[100:] == [
        *("hot dog", "Dog", "abaxial"),
        *("a", "big", "cat", "dog", "S", "U", "hot"),
        *("big cat",),
        *("Big Ben", "Hot dog"),
    ]
    assert not [one for one in lint(built.entries) if one.is_dead]
    tallies = {tally.source: tally for tally in built.tallies}
    assert tallies["wordnet"].dead == 1
    assert tallies["wordnet"].unfit == 1
    assert tallies["wordnet"].repeated == 1
    for one in built.tallies:
        parts = (one.added, one.repeated, one.dead, one.unfit, one.unseen, one.over_size)
        assert one.found == sum(parts), one


def test_a_bigram_is_one_that_captions_have(tmp_path: Path) -> None:
    sources = dataclasses.replace(every_source(tmp_path), bigram_min_pmi=-9.0, bigram_min_count=1)
    bigrams = [entry for entry in build(sources).entries if " " in entry]
    assert "cat a" in bigrams
    assert "dog a" not in bigrams  # neighbours over a line's end
    assert Matcher(bigrams).match("a cat a big cat")


def test_it_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = every_source(tmp_path)
    for name in ("one.txt", "two.txt"):
        write(str(tmp_path / name), build(sources), sources)
        monkeypatch.setattr(building.counting, "HOLD", 2)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.txt", "two.txt"))
    assert one == two
    beside = [tmp_path / f"{name}.txt.provenance.json" for name in ("one", "two")]
    assert beside[0].read_bytes() == beside[1].read_bytes()


def test_provenance_is_true_and_names_no_folder(tmp_path: Path) -> None:
    sources = every_source(tmp_path)
    built = build(sources)
    path = write(str(tmp_path / "list.txt"), built, sources)
    text = Path(path).read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert record["sha256"] == hashlib.sha256((tmp_path / "list.txt").read_bytes()).hexdigest()
    assert record["entries"] == len(built.entries) == len(read_entries(str(tmp_path / "list.txt")))
    assert [one["name"] for one in record["files"]] == [
        *("names.txt", "corpus.txt", "wiki.xml.bz2", "titles")
    ]
    for one in record["files"]:
        data = (tmp_path / one["name"]).read_bytes()
        assert (one["sha256"], one["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert record["options"]["unigram_min_count"] == 8


def test_an_extended_list_keeps_its_ids(tmp_path: Path) -> None:
    old = ["zebra", "", "St. Louis", "a", "zebra"]
    (tmp_path / "old.txt").write_text("".join(f"{entry}\n" for entry in old))
    built = build(
        Sources(extend=str(tmp_path / "old.txt"), corpus=(corpus(tmp_path),), unigram_min_count=8)
    )
    assert built.entries[:5] == old
    assert built.entries[5:] == ["big", "cat", "dog", "S", "U", "hot"]


def test_the_size_is_a_limit(tmp_path: Path) -> None:
    built = build(dataclasses.replace(every_source(tmp_path), size=102))
    assert built.entries[100:] == ["hot dog", "Dog"]
    assert sum(tally.over_size for tally in built.tallies) == 11


def test_only_what_is_seen(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("zebra\ndog\ncat\nhot dog\nabaxial\n")
    sources = Sources(
        numbers=True,
        wordnet=str(tmp_path / "names.txt"),
        seen_in=(corpus(tmp_path),),
        seen_at_least=9,
    )
    built = build(sources)
    assert built.entries[100:] == ["cat", "dog"]
    assert built.tallies[1].unseen == 3


def test_a_bound_that_no_bigram_can_reach_is_said(tmp_path: Path) -> None:
    built = build(Sources(corpus=(corpus(tmp_path),), unigram_min_count=1))
    (note,) = built.notes
    assert "no bigram can have a PMI of 30 bits" in note
    assert not [entry for entry in built.entries if " " in entry]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no source"),
        ({"seen_in": ("x.txt",)}, "no source"),
        ({"numbers": True, "size": 0}, "size = 0"),
        ({"wordnet": "/nowhere"}, "neither a folder"),
        ({"corpus": ("/nowhere.txt",)}, "no such file"),
        ({"extend": "/nowhere.txt"}, "no such file"),
    ],
)
def test_what_can_t_be_built_says_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}.*hint: "):
        build(Sources(**options))


def test_the_list_that_comes_along_is_as_its_provenance_says() -> None:
    entries = read_entries("clip-pipe://small")
    folder = Path(building.__file__).parent / "lists"
    record = json.loads((folder / "small.txt.provenance.json").read_text())
    digest = hashlib.sha256((folder / "small.txt").read_bytes()).hexdigest()
    assert (len(entries), digest) == (record["entries"], record["sha256"])
    assert not [one for one in lint(entries) if one.kind != "case_twin"]
    assert {"0", "99", "dog", "red", "beach", "New York", "swimming pool"} <= set(entries)
    assert "Princeton University" in (folder / "WORDNET-LICENSE").read_text()
    assert storage.exists("clip-pipe://small")
