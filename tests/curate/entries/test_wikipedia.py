"""Articles of a dump as a stream, and wikitext taken off."""

from __future__ import annotations

import bz2
import tracemalloc
from pathlib import Path

import pytest

from curate.entries.wikipedia import articles, prose

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11">\n<siteinfo><sitename>W</sitename></siteinfo>\n'


def page(text: str, ns: str = "0", more: str = "") -> str:
    return f"<page><title>T</title><ns>{ns}</ns>{more}<revision><id>1</id><text>{text}</text></revision></page>\n"


def dump(folder: Path, *pages: str) -> str:
    """Two bzip2 streams, as the dumps have hundreds."""
    path = folder / "pages-articles.xml.bz2"
    body = "".join(pages)
    path.write_bytes(bz2.compress((HEAD + body).encode()) + bz2.compress(b"</mediawiki>"))
    return str(path)


def test_articles_and_nothing_else(tmp_path: Path) -> None:
    path = dump(
        tmp_path,
        page("a [[dog]] &amp; a cat"),
        page("a talk", ns="1"),
        page("#REDIRECT [[Dog]]", more='<redirect title="Dog" />'),
        page(""),
        page("the last"),
    )
    assert [text.split() for text in articles(path)] == [
        ["a", "dog", "&", "a", "cat"],
        [],
        ["the", "last"],
    ]


def test_memory_is_flat(tmp_path: Path) -> None:
    path = dump(tmp_path, *[page("dog " * 2000)] * 600)
    tracemalloc.start()
    assert sum(1 for _ in articles(path)) == 600
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # the texts are 4.8 MB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bz2.compress((HEAD + page("a")).encode()), "can't be read after 1 pages"),
        (bz2.compress((HEAD + page("a")).encode())[:-9], "can't be read"),
        (bz2.compress(b"<html></html>"), "XML without a page"),
        (b"no bzip2", "can't be read after 0 pages"),
    ],
)
def test_what_is_no_dump_says_so(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "d.xml.bz2"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="hint: give a") as fault:
        list(articles(str(path)))
    assert message in str(fault.value)


@pytest.mark.parametrize(
    ("wikitext", "words"),
    [
        ("'''Dogs''' are ''animals''", "Dogs are animals"),
        ("[[Dog|dogs]] and [[cat]]s, [[:Category:X]]", "dogs and cats, Category:X"),
        ("a [[File:x.jpg|thumb|A [[red]] dog]] b [[Category:Dogs]] c", "a b c"),
        ("{{Infobox|name={{lang|de|Hund}}|x}} dog {{{1|y}}}", "dog"),
        ("{| class=x\n! head {| inner |} \n| cell\n|} after", "after"),
        ("dog<ref name=x>a book</ref><ref name=y/> cat<!-- hidden -->", "dog cat"),
        ("<math>x^2</math> <b>bold</b><br/>new <gallery>\nFile:x\n</gallery>", "bold new"),
        ("== The head ==\n* one\n# two\n:: three\n----\n__TOC__", "The head one two three"),
        ("[http://x.com the site] [https://y.com] &nbsp;&eacute;", "the site é"),
        ("an open {{template and [[link", "an open template and link"),
        ("<!-- never closed", ""),
    ],
)
def test_wikitext_is_taken_off(wikitext: str, words: str) -> None:
    assert prose(wikitext).split() == words.split()
