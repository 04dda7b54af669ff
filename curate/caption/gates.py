"""Whether a rewritten caption may stand beside the original: cheap checks on words alone.

The order and the limits follow the measurements in the facts on caption rewriting (tech 1c). There is
no check on meaning by embedding here: it needs a model, and it misses swapped colours and counts,
which the check on facts catches.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_REFUSAL = re.compile(
    r"\b(i['’]?m|i am) (sorry|unable|not able)|\bi (can['’]?t|cannot|can not|won['’]?t|do not have|don['’]?t have)\b"
    r"|\bas an? (ai|language model|assistant)\b|\bcannot (assist|help|comply|fulfil)",
    re.IGNORECASE,
)
_LEAK = re.compile(
    r"<\|.*?\|>|</?s>|\[/?inst\]|```|=>|\{\{|\}\}"
    r"|^(sure|certainly|of course|okay)\b|^here(['’]s| is| are)\b"
    r"|\b(re-?writ\w*|re-?phras\w*|paraphras\w*|caption|output|note)\s*:|\balt[- ]text\b|\bword count\b",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^(re-?written caption|re-?write|caption)\s*:\s*", re.IGNORECASE)
_QUOTES = "\"'“”‘’«»"
_NEAR_COPY_RATIO = 0.9
_ECHO_WORDS = 6  # a run of the prompt this long in the answer is a leak
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
# "one" is left out: "a cat" and "one of the cats" would count as new facts.
_NUMBER_WORDS = {
    name: str(value)
    for value, name in enumerate(
        [
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ],
        start=2,
    )
}
_COLOURS = {
    **{
        name: name
        for name in [
            "black",
            "white",
            "red",
            "green",
            "blue",
            "yellow",
            "orange",
            "pink",
            "brown",
            "beige",
            "gold",
            "silver",
            "turquoise",
        ]
    },
    "grey": "grey",
    "gray": "grey",
    "purple": "purple",
    "violet": "purple",
    "golden": "gold",
}


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Limits for one caption stage. ``prompt`` is what was asked, so that its echo is known."""

    prompt: str
    min_words: int = 3
    max_words: int = 40
    max_ratio: float = 6.0
    keep_facts: bool = True

    def judge(self, text: str, source: str, accepted: Sequence[str]) -> str | None:
        """The reason to refuse a cleaned answer, or None. ``accepted`` are this row's earlier rewrites."""
        if not text:
            return "empty"
        if _REFUSAL.search(text):
            return "refusal"
        if "\n" in text or _LEAK.search(text) or self._echoes(text):
            return "leak"
        length, source_length = len(text.split()), len(source.split())
        if length < self.min_words:
            return "too_short"
        if length > min(self.max_words, self.max_ratio * max(source_length, self.min_words)):
            return "too_long"
        if _near_copy(text, source):
            return "copy"
        if any(_words(text) == _words(other) for other in accepted):
            return "duplicate"
        if self.keep_facts and facts(text) != facts(source):
            return "facts"
        return None

    def _echoes(self, text: str) -> bool:
        asked, said = _words(self.prompt), _words(text)
        runs = {tuple(asked[i : i + _ECHO_WORDS]) for i in range(len(asked) - _ECHO_WORDS + 1)}
        return any(
            tuple(said[i : i + _ECHO_WORDS]) in runs for i in range(len(said) - _ECHO_WORDS + 1)
        )


def cleaned(answer: str) -> str:
    """NFC, without a leading label, surrounding quotes or runs of spaces; line breaks stay, to be judged."""
    text = unicodedata.normalize("NFC", answer).strip()
    text = _LABEL.sub("", text).strip()
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return re.sub(r"[^\S\n]+", " ", text)


def facts(text: str) -> frozenset[str]:
    """Numbers and colours named in a text, each in one spelling. Years and file numbers count too."""
    words = _words(text)
    named = {_NUMBER_WORDS[word] for word in words if word in _NUMBER_WORDS}
    named |= {_COLOURS[word] for word in words if word in _COLOURS}
    return frozenset(named | set(_NUMBER.findall(text)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _near_copy(text: str, source: str) -> bool:
    said, given = _words(text), _words(source)
    return (
        said == given
        or difflib.SequenceMatcher(None, said, given, autojunk=False).ratio() > _NEAR_COPY_RATIO
    )
