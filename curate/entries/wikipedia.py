"""The prose of a Wikipedia dump (`pages-articles.xml.bz2`), read as a stream, wikitext taken off simply.

Pages of the article namespace that are no redirects. What is removed with all it holds: comments,
references, formulas, galleries, code, templates and tables (innermost first, so nested ones too), and
links to files and categories. What stays is its text: other links by their label, headings, list
items, bold and italics. No template is expanded, so what templates write is missing. That is sound for
counting words, and not for reading. A broken page costs at most its own text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from curate.entries.corpus import opened

_MAX_NESTING = 25
_HIDDEN_TAGS = (
    "ref|math|chem|gallery|timeline|score|syntaxhighlight|source|code|pre|imagemap|templatedata"
)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_SELF_CLOSED = re.compile(r"<[A-Za-z][^<>]*/>")
_HIDDEN = re.compile(rf"<({_HIDDEN_TAGS})\b[^<>]*>.*?</\1\s*>", re.S | re.I)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\{\{[^{}]*\}\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_OUTSIDE = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\]]*\s*([^\]]*)\]")
_QUOTES = re.compile(r"'{2,}")
_LINE_HEAD = re.compile(r"^[ \t]*[*#:;]+|^=+|=+[ \t]*$|^-{4,}|__[A-Z]+__", re.M)
_LEFT_OVER = re.compile(r"\{\||\|\}|\{\{+|\}\}+|\[\[+|\]\]+")


def articles(path: str) -> Iterator[str]:
    """The text of each article of a dump, in order; .bz2 and .gz are uncompressed on the way.

    Raises ValueError for a file that is no MediaWiki dump or ends too early.
    """
    pages = 0
    try:
        with opened(path) as file:
            events = ElementTree.iterparse(file, events=("start", "end"))
            _, root = next(events)
            for event, element in events:
                if event == "end" and _name(element) == "page":
                    pages += 1
                    if _is_article(element):
                        yield prose(_field(element, "text"))
                    root.clear()  # what is read is forgotten: memory stays flat
    except (ElementTree.ParseError, OSError, EOFError, StopIteration) as fault:
        raise ValueError(
            f"{path}: can't be read after {pages} pages: {fault}. hint: give a whole pages-articles.xml(.bz2)"
        ) from fault
    if not pages:
        raise ValueError(
            f"{path}: XML without a page. hint: give a MediaWiki dump, pages-articles.xml(.bz2)"
        )


def prose(wikitext: str) -> str:
    """The text of one page without its markup."""
    text = _COMMENT.sub(" ", wikitext)
    text = _HIDDEN.sub(" ", _SELF_CLOSED.sub(" ", text))
    text = _until_still(_TEMPLATE, " ", text)
    text = _until_still(_TABLE, " ", text)
    text = _until_still(_LINK, _label, text)
    text = _OUTSIDE.sub(r"\1", text)
    text = _LEFT_OVER.sub("\n", _QUOTES.sub("", _TAG.sub(" ", text)))
    return html.unescape(_LINE_HEAD.sub("\n", text))


def _label(link: re.Match[str]) -> str:
    """What a link shows: nothing for a file or category, else what stands after the last bar."""
    target, *more = link[1].split("|")
    if ":" in target and not target.startswith(":"):
        return " "
    return more[-1] if more else target.lstrip(":")


def _until_still(pattern: re.Pattern[str], new: object, text: str) -> str:
    for _ in range(_MAX_NESTING):
        text, changes = pattern.subn(new, text)  # type: ignore[call-overload]
        if not changes:
            break
    return text


def _is_article(page: ElementTree.Element) -> bool:
    redirects = any(_name(child) == "redirect" for child in page)
    return _field(page, "ns") in ("0", "") and not redirects


def _field(page: ElementTree.Element, name: str) -> str:
    return next((element.text or "" for element in page.iter() if _name(element) == name), "")


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
