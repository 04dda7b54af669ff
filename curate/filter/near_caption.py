"""Near-equal captions of one picture: the first in source order stays, the rest go.

Captions are compared by the Jaccard similarity of their sets of three-letter shingles (A. Broder, "On
the resemblance and containment of documents", 1997), computed exactly: two sets can only be that alike
if they share one of the rarest shingles of each (prefix filtering, Bayardo et al., WWW 2007) and short
signatures of them differ in few bits, and a pair that other pairs have joined already is not compared,
so a picture with very many captions is rarely compared all with all. Letters and not words, so that
typos, plurals and scripts without spaces count alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from curate.filter import linked
from curate.filter.base import Linked
from curate.filter.linked import Pairs

_SHINGLE = 3
_CODE_POINT_BITS = 21
_SIGNATURE_BITS = 256
_ROWS_AT_ONCE = 50_000
_PAIRS_AT_ONCE = 8192  # pairs that are verified before it is asked again which are joined
_MANY_ROWS = 128  # distinct captions of one picture from which all pairs may be the cheaper way
_POSTING_COST = 16  # a pair out of postings, in pairs of a block (measured: 10 to 20), by two
_BLOCK_ROWS = 1024
_SLACK = 1e-9  # of a product of floats: may let a pair be compared, never keep one from it
_SLACK_32 = 0.01  # the same in float32, of bounds up to 256 bits


@dataclass(frozen=True, kw_only=True)
class NearCaption(Linked):
    """Refuses rows as ``near_duplicate.caption``; ``near_caption_of`` is the uid of the row that stays.

    Case, punctuation and the width of letters do not count, so captions that differ in nothing else
    are equal. A row without a caption, or with nothing in the column ``per``, is kept.

    Options:
        per: a text column; rows with an equal value are of one picture (``url``, or ``sha256``).
        similarity: from which share of shingles in common captions are copies. At 0.8, 98 of 100 web
            captions with a letter left out are found, and of two people's captions for one photograph
            1 pair in 800.

    20,000 captions of one picture take 1 to 4 CPU-seconds, from one template or not. What grows with the
    square of their number are comparisons of signatures, where captions share rare shingles, are not
    alike, and are not joined by others: 10 CPU-seconds for each billion of pairs. Long captions of few
    letters (1,000 of eight) have signatures that tell nothing: 8 microseconds for each pair.
    """

    refusal: ClassVar[str] = "near_duplicate.caption"
    copy_of: ClassVar[str] = "near_caption_of"

    per: str = "url"
    similarity: float = 0.8

    def reads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.per, "caption", *super().reads())))

    def check(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity = {self.similarity}. hint: a share over 0, at most 1")

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        kind = types[self.per]
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise ValueError(
                f"column {self.per!r} is {kind}, not text. hint: per = 'url' or per = 'sha256'"
            )

    def summarize(self, part: pa.Table) -> pa.Table:
        table = self.places(part)
        table = table.append_column("key", part[self.per].cast(pa.string()))
        table = table.append_column("caption", part["caption"].cast(pa.string()))
        return table.drop_null()

    def links(self, bucket: pa.Table) -> Pairs:
        return linked.forest(len(bucket), self._pairs(bucket))

    def _pairs(self, bucket: pa.Table) -> Iterator[Pairs]:
        """Of rows with one key: equal texts as a chain, then the distinct ones that are alike."""
        keys = bucket["key"].combine_chunks().dictionary_encode().indices.to_numpy()
        rows = np.flatnonzero(np.bincount(keys)[keys] > 1)
        texts = [plain(text) for text in bucket["caption"].take(pa.array(rows)).to_pylist()]
        which = pa.array(texts, pa.string()).dictionary_encode().indices.to_numpy()
        order = np.lexsort((which, keys[rows]))
        repeats = (np.diff(keys[rows][order]) == 0) & (np.diff(which[order]) == 0)
        yield rows[order[:-1][repeats]], rows[order[1:][repeats]]
        order = order[np.concatenate([[True], ~repeats])[: len(order)]]
        for piece in _pieces(keys[rows][order]):
            chosen = order[piece]
            found = _alike([texts[n] for n in chosen], keys[rows][chosen], self.similarity)
            for left, right in found:
                yield rows[chosen[left]], rows[chosen[right]]


def plain(text: str) -> str:
    """A caption without what does not count: NFKC, case folded, words of letters and digits only."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_BLANKS).split())


class _Blanks(dict[int, str]):
    """Punctuation, symbols and controls to a space; what is invisible to nothing. Filled as met."""

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))
        self[code] = "" if kind == "Cf" else " " if kind[0] in "PSZC" else chr(code)
        return self[code]


_BLANKS = _Blanks()


def _pieces(sorted_keys: np.ndarray) -> Iterator[slice]:
    """Slices of about as many rows as are compared at once; no key is in two of them."""
    starts = np.flatnonzero(np.diff(sorted_keys, prepend=-1))
    bounds = starts[np.flatnonzero(np.diff(starts // _ROWS_AT_ONCE, prepend=-1))].tolist()
    for start, stop in zip(bounds, [*bounds, len(sorted_keys)][1:]):
        yield slice(start, stop)


def _alike(texts: list[str], keys: np.ndarray, similarity: float) -> Iterator[Pairs]:
    """Pairs of distinct texts with an equal key and enough shingles in common, enough to join each group."""
    owner, shingle = _shingles(texts)
    captions = _Captions(owner, shingle, len(texts), similarity)
    order, number = _postings(owner, shingle, captions.sizes, keys, similarity)
    many = _many(keys, owner[order], number)
    few = ~many[keys[owner[order]]]
    order, number = order[few], number[few]
    tried: list[Pairs] = []
    for left, right in linked.pairs_in_groups(number):
        tried.append(captions.likely(owner[order[left]], owner[order[right]]))
        if sum(len(some) for some, _ in tried) >= _PAIRS_AT_ONCE:
            yield from captions.join(tried)
            tried = []
    yield from captions.join(tried)
    for key in np.flatnonzero(many):
        rows = np.flatnonzero((keys == key) & (captions.sizes > 0))
        yield from captions.all_pairs(np.array(sorted(rows.tolist(), key=texts.__getitem__)))


def _postings(
    owner: np.ndarray, shingle: np.ndarray, sizes: np.ndarray, keys: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Places in ``owner`` of each text's rarest shingles, and a number, ascending, for each (key, shingle).

    Two texts that are alike are under one number at least once.
    """
    rank = np.argsort(np.argsort(np.bincount(shingle), kind="stable"))[shingle]
    order = np.lexsort((rank, owner))
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    nth = np.arange(len(order)) - starts[owner[order]]
    # Sets of a and b shingles that are alike share at least similarity * max(a, b) of them.
    prefix = sizes - np.ceil(similarity * sizes - _SLACK).astype(np.int64) + 1
    order = order[nth < prefix[owner[order]]]
    order = order[np.lexsort((owner[order], rank[order], keys[owner[order]]))]
    key, own = keys[owner[order]], rank[order]
    change = (np.diff(key, prepend=-1) != 0) | (np.diff(own, prepend=-1) != 0)
    return order, np.cumsum(change) - 1


def _many(keys: np.ndarray, texts: np.ndarray, number: np.ndarray) -> np.ndarray:
    """By key: whether its postings would compare so many pairs that all of its texts are soon compared.

    ``texts`` and ``number``: the text and the number of each posting.
    """
    members = np.bincount(number)
    key_of = np.zeros(len(members), np.int64)
    key_of[number] = keys[texts]
    rows = np.bincount(keys)
    pairs = np.bincount(key_of, members * (members - 1) / 2, minlength=len(rows))
    return (rows >= _MANY_ROWS) & (pairs > rows.astype(float) ** 2 / _POSTING_COST)


class _Captions:
    """Distinct texts as sets of shingles, and which of them the links found so far have joined.

    A pair that is joined already, over whatever other texts, is not looked at again: what is asked for
    are the groups. So texts from one template cost about what their number is, not its square.
    """

    def __init__(
        self, owner: np.ndarray, shingle: np.ndarray, count: int, similarity: float
    ) -> None:
        from scipy.sparse import csr_array

        self.sizes = np.bincount(owner, minlength=count)
        self._sets = csr_array(
            (np.ones(len(owner), np.int32), (owner, shingle)), shape=(count, max(1, _top(shingle)))
        )
        self._signature = _signatures(owner, shingle, count)
        self._similarity = similarity
        # Half of the shingles not in common, at most: of each text's size.
        self._most = (1 - similarity) / (1 + similarity)
        self._group = np.arange(count)

    def likely(self, left: np.ndarray, right: np.ndarray) -> Pairs:
        """Those of the pairs that are not joined and may be alike by their signatures."""
        apart = self._group[left] != self._group[right]
        left, right = left[apart], right[apart]
        signature = self._signature
        differ = np.bitwise_count(signature[left] ^ signature[right]).sum(axis=1, dtype=np.int64)
        fits = differ <= self._most * (self.sizes[left] + self.sizes[right]) + _SLACK
        return left[fits], right[fits]

    def join(self, pairs: list[Pairs]) -> Iterator[Pairs]:
        """The pairs that are alike, but for those that the pairs before them have joined."""
        if not pairs:
            return
        every = [np.concatenate(side) for side in zip(*pairs, strict=True)]
        for start in range(0, len(every[0]), _PAIRS_AT_ONCE):
            left, right = (side[start : start + _PAIRS_AT_ONCE] for side in every)
            apart = self._group[left] != self._group[right]
            left, right = self._alike(left[apart], right[apart])
            if len(left):
                ends = self._group[left], self._group[right]
                self._group = linked.groups(len(self._group), *ends)[self._group]
                yield left, right

    def all_pairs(self, rows: np.ndarray) -> Iterator[Pairs]:
        """Pairs among ``rows`` that are alike, enough to join each group. Neighbours are compared first."""
        for top in range(0, len(rows), _BLOCK_ROWS):
            block = rows[top : top + _BLOCK_ROWS]
            for start in range(top, -1, -_BLOCK_ROWS):
                for left, right in self._not_joined(block, rows[start : start + _BLOCK_ROWS]):
                    yield from self.join([self._likely_block(left, right)])

    def _not_joined(self, left: np.ndarray, right: np.ndarray) -> Iterator[Pairs]:
        """Left and right rows of two blocks without the pairs that are both in the largest group."""
        found, counts = np.unique(self._group[np.concatenate([left, right])], return_counts=True)
        largest = found[counts.argmax()]
        inside = self._group[left] == largest
        yield left[~inside], right
        yield left[inside], right[self._group[right] != largest]

    def _likely_block(self, left: np.ndarray, right: np.ndarray) -> Pairs:
        """``likely`` of every left text with every right one."""
        differ = np.zeros((len(left), len(right)), np.uint16)
        for word in range(self._signature.shape[1]):
            ends = self._signature[left, word], self._signature[right, word]
            differ += np.bitwise_count(ends[0][:, None] ^ ends[1])
        most = [(self._most * self.sizes[side] + _SLACK_32).astype(np.float32) for side in (left, right)]  # fmt: skip
        one, other = np.nonzero(differ <= most[0][:, None] + most[1])
        return self.likely(left[one], right[other])

    def _alike(self, left: np.ndarray, right: np.ndarray) -> Pairs:
        """The pairs whose shingles in common are at least ``similarity`` of all of theirs."""
        count = len(self.sizes)
        left, right = np.divmod(np.unique(left * count + right), max(count, 1))
        common = np.asarray((self._sets[left] * self._sets[right]).sum(axis=1)).ravel()
        alike = common / (self.sizes[left] + self.sizes[right] - common) >= self._similarity
        return left[alike], right[alike]


def _signatures(owner: np.ndarray, shingle: np.ndarray, count: int) -> np.ndarray:
    """256 bits per text, uint64 of shape (count, 4), that differ in no more bits than the sets do."""
    bits = np.zeros((count, _SIGNATURE_BITS), np.bool_)
    bits[owner, shingle % _SIGNATURE_BITS] = True
    return np.packbits(bits, axis=1).view(np.uint64)


def _shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The set of shingles of each text: the text's number, ascending, and the shingle's number.

    A text stands between two spaces, so one letter makes one shingle; an empty text has none.
    """
    padded = [f" {text} " for text in texts]
    points = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.int64)
    lengths = np.array([len(text) for text in padded], np.int64)
    owner = np.repeat(np.arange(len(texts)), lengths)
    left_in_text = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(points))
    starts = np.flatnonzero(left_in_text >= _SHINGLE)
    codes = np.zeros(len(starts), np.int64)
    for step in range(_SHINGLE):
        codes = (codes << _CODE_POINT_BITS) | points[starts + step]
    number = pa.array(codes).dictionary_encode().indices.to_numpy().astype(np.int64)
    width = max(1, _top(number))
    members = np.sort(owner[starts] * width + number)
    members = members[np.diff(members, prepend=-1) != 0]
    return members // width, members % width


def _top(numbers: np.ndarray) -> int:
    return int(numbers.max()) + 1 if len(numbers) else 0
