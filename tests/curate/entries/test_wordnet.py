"""Names out of WordNet's own data files and out of lists of names."""

from __future__ import annotations

from pathlib import Path

import pytest

from curate.entries import wordnet

NOUN = """  1 This software and database is being provided to you.
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus
09023321 15 n 02 St._Louis 0 Gateway_to_the_West 0 000 | a city
"""
ADJ = "00001740 00 a 02 able(p) 0 Galore(ip) 0 001 = 05200169 n 0000 | having the means\n"


def test_the_data_files(tmp_path: Path) -> None:
    folder = tmp_path / "dict"
    folder.mkdir()
    (folder / "data.noun").write_text(NOUN)
    (folder / "data.adj").write_text(ADJ)
    assert list(wordnet.names(str(tmp_path))) == ["entity", "dog", "st. louis", "able"]
    assert list(wordnet.names(str(folder), lemmas=True)) == [
        *("entity", "dog", "domestic dog", "Canis familiaris"),
        *("St. Louis", "Gateway to the West", "able", "Galore"),
    ]


def test_a_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("hot_dog\nCat\n")
    assert list(wordnet.names(str(tmp_path / "names.txt"))) == ["hot dog", "Cat"]


def test_what_is_no_wordnet_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"neither a folder with data\.noun.*hint: "):
        wordnet.files(str(tmp_path))
    (tmp_path / "data.verb").write_text("nothing of the kind\n")
    with pytest.raises(ValueError, match=r"line 1 is no synset.*hint: "):
        list(wordnet.names(str(tmp_path)))
