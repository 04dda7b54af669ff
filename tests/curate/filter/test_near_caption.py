"""near_duplicate.caption: exactly the Jaccard similarity of shingles, within one picture only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filter import near_caption
from curate.filter.near_caption import NearCaption, plain
from curate.stage import pool_state


def of(
    captions: Sequence[str | None],
    urls: Sequence[str | None],
    stage: NearCaption | None = None,
    cut: int = 3,
) -> list[str | None]:
    """``near_caption_of`` for rows with the uids "0", "1", ..., in parts of ``cut`` rows."""
    stage = stage or NearCaption()
    at = range(len(captions))
    columns = {"uid": [str(n) for n in at], "part": [n // cut for n in at], "row": [n % cut for n in at]}  # fmt: skip
    texts = {"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string())}
    table = pa.table({**columns, **texts})
    parts = [table.slice(start, cut) for start in range(0, len(table), cut)]
    state = pool_state(stage, lambda: parts)
    done = pa.concat_tables(
        [stage.decide(part, state) for part in parts], promote_options="permissive"
    )
    wanted = [None if uid is None else stage.refusal for uid in done[stage.copy_of].to_pylist()]
    assert done["reason"].to_pylist() == wanted
    found: list[str | None] = done[stage.copy_of].to_pylist()
    return found


def shingles(text: str) -> set[str]:
    padded = f" {plain(text)} "
    return {padded[n : n + 3] for n in range(len(padded) - 2)}


def brute_force(captions: list[Any], urls: list[Any], similarity: float) -> list[str | None]:
    group = list(range(len(captions)))
    for i, j in combinations(range(len(captions)), 2):
        if None in (captions[i], captions[j], urls[i], urls[j]) or urls[i] != urls[j]:
            continue
        left, right = shingles(captions[i]), shingles(captions[j])
        alike = plain(captions[i]) == plain(captions[j])
        if alike or (left | right and len(left & right) / len(left | right) >= similarity):
            old, new = max(group[i], group[j]), min(group[i], group[j])
            group = [new if g == old else g for g in group]
    return [None if g == n else str(g) for n, g in enumerate(group)]


WORDS = st.lists(
    st.sampled_from(["ab", "abc", "abd", "xyz", "é", "ß", "猫", "犬が", "123", "!"]), max_size=6
)
CAPTION = st.one_of(st.none(), WORDS.map(" ".join))


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.tuples(CAPTION, st.sampled_from(["u", "v", None])), min_size=1, max_size=25),
    similarity=st.sampled_from([0.1, 0.5, 0.6, 0.75, 0.8, 1.0]),
    cut=st.integers(1, 26),
)
def test_rows_are_those_of_all_pairs(
    rows: list[tuple[Any, Any]], similarity: float, cut: int
) -> None:
    captions, urls = [caption for caption, _ in rows], [url for _, url in rows]
    found = of(captions, urls, NearCaption(similarity=similarity), cut)
    assert found == brute_force(captions, urls, similarity)


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(st.tuples(CAPTION, st.sampled_from(["u", "v"])), min_size=1, max_size=25),
    similarity=st.sampled_from([0.1, 0.5, 0.6, 0.75, 0.8, 1.0]),
    block=st.integers(1, 6),
    at_once=st.integers(1, 4),
)
def test_rows_are_those_of_all_pairs_where_captions_are_compared_by_blocks(
    rows: list[tuple[Any, Any]], similarity: float, block: int, at_once: int
) -> None:
    captions, urls = [caption for caption, _ in rows], [url for _, url in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_caption, "_MANY_ROWS", 2)
        patch.setattr(near_caption, "_POSTING_COST", 1e9)
        patch.setattr(near_caption, "_BLOCK_ROWS", block)
        patch.setattr(near_caption, "_PAIRS_AT_ONCE", at_once)
        found = of(captions, urls, NearCaption(similarity=similarity), 26)
    assert found == brute_force(captions, urls, similarity)


def test_pairs_that_others_have_joined_are_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand captions of one template are two million pairs that are alike."""
    verified = []
    alike = near_caption._Captions._alike

    def counted(self: Any, left: np.ndarray, right: np.ndarray) -> Any:
        verified.append(len(left))
        return alike(self, left, right)

    monkeypatch.setattr(near_caption._Captions, "_alike", counted)
    captions = [f"Buy product {n:05d} online at MegaShop today" for n in range(2000)]
    found = of(captions, ["u"] * 2000, cut=2000)
    assert found == [None, *["0"] * 1999]
    assert sum(verified) < 100_000


def test_pieces_and_blocks_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    words = ["red", "reed", "blue", "green", "greens", "a", "the", "dog", "dogs", "runs"]
    captions = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(400)]
    urls = [f"u{n}" for n in rng.integers(0, 12, 400)]
    monkeypatch.setattr(near_caption, "_ROWS_AT_ONCE", 50)
    monkeypatch.setattr(near_caption, "_PAIRS_AT_ONCE", 7)
    wanted = brute_force(captions, urls, 0.8)
    assert of(captions, urls, cut=70) == wanted
    assert 10 < sum(uid is not None for uid in wanted) < 380


def test_case_punctuation_typos_and_width_are_near() -> None:
    captions = [
        "A brown dog runs along the beach",
        "a brown dog runs along the beach!!",
        "A brown dog runs along the bech",
        "A brown dog runs along the beaches",
        "Ａ brown　dog runs along the beach",
        "A grey cat sleeps on a sofa",
    ]
    assert of(captions, ["u"] * 6) == [None, "0", "0", "0", "0", None]
    assert of(captions[:2], ["u", "v"]) == [None, None]


def test_vowel_signs_count_as_letters() -> None:
    """Marks are no punctuation: without them these are one word."""
    assert plain("कि") != plain("का")
    assert of(["कि", "का", "कि।"], ["u"] * 3) == [None, None, "0"]


def test_another_column_names_the_picture() -> None:
    stage = NearCaption(per="sha256")
    assert stage.reads() == ("sha256", "caption", "part", "row")
    assert NearCaption(per="caption").reads() == ("caption", "part", "row")


def test_a_picture_with_very_many_captions() -> None:
    """Eight thousand captions of one url: all with all would be thirty-two million pairs."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{n:x}q" for n in rng.integers(0, 1 << 30, 5000)])
    captions: list[str | None] = [" ".join(row) for row in words[rng.integers(0, 5000, (8_000, 8))]]
    captions[7] = f"{captions[7_900]}!"
    found = of(captions, ["u"] * 8_000, cut=2500)
    assert found[7_900] == "7"
    assert sum(uid is not None for uid in found) == 1


def test_options_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="hint: a share over 0"):
        NearCaption(similarity=0.0).check()
    with pytest.raises(ValueError, match="hint: per = 'url'"):
        NearCaption(per="width").check_columns({"width": pa.int32(), "caption": pa.string()})
    NearCaption().check_columns({"url": pa.dictionary(pa.int32(), pa.string())})
