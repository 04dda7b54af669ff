"""Finds the entries of a list in many captions at once, by MetaCLIP's spaced rule.

MetaCLIP, arXiv 2309.16671, section 3.2. The rule: each of ``, . ; : ? ! ` `` gets a space on both
sides, tab, LF and CR become spaces, and an entry matches where it stands between two spaces (the
caption's ends count as spaces). All overlapping and nested entries count, each once per caption. There
is no lower-casing and no Unicode normalisation. The paper searches substrings; an entry that stands
between spaces is a run of whole tokens, so here a trie over tokens finds the same set. All captions of
a batch walk through it together, so that no Python runs per caption.

Shapes: B bytes of all captions, R captions, T tokens with a word or mark in them, S places of the text
(every token, empty ones too, and one boundary after each caption), H hits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MARKS = ",.;:?!`"
SPACES = " \t\n\r"
# Spaces that a byte stands for, or brings with it: none in a word, one, or one on each side of a mark.
SEPARATORS = np.zeros(256, np.uint8)
SEPARATORS[list(SPACES.encode())] = 1
SEPARATORS[list(MARKS.encode())] = 2
NOTHING = -1  # a place of a text where no sequence of the trie goes on

_STEP_BYTES = 1 << 21  # of captions at a time, so that what is worked on stays in the cache
# UTF-8 of captions (B,) and offsets into it (R + 1,) -> row and id of every match, (H,) and (H,)
Find = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_MIX = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the top bits of key * this


class Matcher:
    """An entry list, ready to be looked for in captions. The first of equal entries counts."""

    def __init__(self, entries: Iterable[str], ids: Iterable[int] | None = None) -> None:
        """``ids``: the entries' ids, ascending; their places in the list where left out."""
        encoded = pa.array(
            [entry.encode("utf-8", "surrogatepass") for entry in entries], pa.binary()
        )
        split = pc.split_pattern(encoded, " ")
        words = split.flatten().dictionary_encode()
        number = np.arange(len(encoded)) if ids is None else np.fromiter(ids, np.int64)
        # " ".join of one empty token is the empty entry, which matches nothing.
        full = np.asarray(pc.greater(pc.binary_length(encoded), 0))
        n_tokens = np.asarray(pc.list_value_length(split))
        starts = np.cumsum(n_tokens) - n_tokens
        vocabulary = words.dictionary.to_pylist()
        self._codes = dict(zip(vocabulary, range(len(vocabulary))))
        self._trie = Trie(
            np.asarray(words.indices), starts[full], n_tokens[full], number[full], len(vocabulary)
        )

    def match(self, text: str) -> list[int]:
        """Ids of all entries in ``text``, ascending, each once."""
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        _, ids = self.hits(data, np.array([0, len(data)]))
        return sorted(set(ids.tolist()))

    def match_all(self, captions: pa.Array | pa.ChunkedArray) -> pa.ListArray:
        """``match`` of each caption, as list<int32> of length R; an empty list for a null."""
        return in_steps(captions, self.hits)

    def hits(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and id of every match, not in order and with repeats, shapes (H,).

        ``data``: UTF-8 of all captions, shape (B,); ``offsets`` into it, shape (R + 1,).
        """
        text, bounds = self._places(data, offsets)
        places, ids = self._trie.walk(text)
        return row_of_places(bounds)[places], ids

    def _places(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The captions as codes of tokens, shape (S,), and the first place of each, shape (R + 1,)."""
        separators = SEPARATORS[data]
        before = running(separators)  # separators before each byte, shape (B + 1,)
        bounds = before[offsets] + 2 * np.arange(len(offsets))
        is_word, is_mark = separators == 0, separators == 2
        follows_word = np.concatenate([[False], is_word[:-1]])[: len(data)]
        follows_word[offsets[:-1][offsets[:-1] < len(data)]] = False
        first = np.flatnonzero(
            (is_word & ~follows_word) | is_mark
        )  # byte of each token, shape (T,)
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(np.searchsorted(first, offsets)))
        text = np.full(bounds[-1], self._codes.get(b"", NOTHING), np.int32)
        text[bounds[1:] - 1] = NOTHING
        text[before[first] + is_mark[first] + 2 * row] = self._coded(data, separators, first)
        return text, bounds

    def _coded(self, data: np.ndarray, separators: np.ndarray, first: np.ndarray) -> np.ndarray:
        """The code of each token, or NOTHING for one that is in no entry, shape (T,)."""
        inked = data.tobytes().translate(None, SPACES.encode())
        ends = np.empty(len(first) + 1, np.int64)
        ends[:-1] = first - running(separators == 1)[first]
        ends[-1] = len(inked)
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(inked)]
        found = pa.Array.from_buffers(pa.large_binary(), len(first), buffers).dictionary_encode()
        words = found.dictionary.to_pylist()
        codes = np.fromiter(map(self._codes.get, words, repeat(NOTHING)), np.int32, len(words))
        return codes[np.asarray(found.indices)]


class Trie:
    """Sequences of symbols, looked for at all places of a text at once.

    A node is a number. The node of a sequence of one symbol is that symbol, and the children of all
    nodes stand in one hash table under parent * (symbols + 1) + symbol + 1.
    """

    def __init__(
        self,
        flat: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        ids: np.ndarray,
        n_symbols: int,
    ) -> None:
        """Sequence k is ``flat[starts[k] : starts[k] + lengths[k]]``, of symbols below ``n_symbols``.

        The first of equal sequences counts. No sequence is empty.
        """
        self._n_symbols, self._stride = n_symbols, n_symbols + 1
        self._can_follow = np.zeros(n_symbols + 1, bool)  # the last is of NOTHING, which is -1
        node, depth, n_nodes = flat[starts].astype(np.int64), 1, n_symbols
        keys = [np.zeros(0, np.int64)]
        ends, parents = [], []
        while len(node):
            ends.append((node[lengths == depth], ids[lengths == depth]))
            on = lengths > depth
            starts, lengths, ids, node = starts[on], lengths[on], ids[on], node[on]
            parents.append(node)
            symbol = flat[starts + depth]
            if depth == 1:
                self._can_follow[symbol] = True
            new, child = np.unique(self._key(node, symbol), return_inverse=True)
            keys.append(new)
            node, depth, n_nodes = n_nodes + child, depth + 1, n_nodes + len(new)
        # One node more than there are: NOTHING leads to it, and it has no id and no children.
        self._id = np.full(n_nodes + 1, -1, np.int32)
        self._goes_on = np.zeros(n_nodes + 1, bool)
        for nodes, numbers in ends:
            self._id[nodes[::-1]] = numbers[::-1]  # of equal ones the first is written last
        for nodes in parents:
            self._goes_on[nodes] = True
        self._fill(np.concatenate(keys))

    def walk(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First place and id of each occurrence of each sequence, shapes (H,), in no order.

        ``text``: symbols or NOTHING, shape (S,); the last is NOTHING.
        """
        ids = self._id[text]
        place = np.flatnonzero(ids >= 0)
        places, found = [place], [ids[place]]
        start = np.flatnonzero(self._goes_on[text[:-1]] & self._can_follow[text[1:]])
        node, depth = text[start].astype(np.int64), 1
        while len(start):
            child = self._children(self._key(node, text[start + depth]))
            there = np.flatnonzero(child >= 0)
            start, node = start[there], child[there]
            ids = self._id[node]
            ends = np.flatnonzero(ids >= 0)
            places.append(start[ends])
            found.append(ids[ends])
            on = np.flatnonzero(self._goes_on[node])
            start, node, depth = start[on], node[on], depth + 1
        return np.concatenate(places), np.concatenate(found)

    def _key(self, node: np.ndarray, symbol: np.ndarray) -> np.ndarray:
        return node * self._stride + symbol + 1

    def _slot(self, keys: np.ndarray) -> np.ndarray:
        return ((keys.view(np.uint64) * _MIX) >> self._shift).view(np.int64)

    def _fill(self, keys: np.ndarray) -> None:
        """The hash table, at most a quarter full, with open addressing."""
        bits = max(4, (4 * len(keys)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._last = (1 << bits) - 1
        number = np.full(1 << bits, -1, np.int32)
        todo, slot = np.arange(len(keys), dtype=np.int32), self._slot(keys)
        while len(todo):
            free = number[slot] < 0
            number[slot[free]] = todo[free]
            lost = number[slot] != todo
            todo, slot = todo[lost], (slot[lost] + 1) & self._last
        self._keys = np.full(1 << bits, -1, np.int64)
        self._keys[number >= 0] = keys[number[number >= 0]]
        self._child = np.where(number >= 0, number + np.int32(self._n_symbols), np.int32(-1))

    def _children(self, keys: np.ndarray) -> np.ndarray:
        """The node under each key, -1 where there is none; shapes (keys,), int64."""
        slot = self._slot(keys)
        there = self._keys[slot]
        child = np.where(there == keys, self._child[slot], -1).astype(np.int64)
        todo = np.flatnonzero((there != keys) & (there >= 0))
        while len(todo):
            slot[todo] = (slot[todo] + 1) & self._last
            there = self._keys[slot[todo]]
            same = there == keys[todo]
            child[todo[same]] = self._child[slot[todo[same]]]
            todo = todo[(there >= 0) & ~same]
        return child


def in_steps(captions: pa.Array | pa.ChunkedArray, find: Find) -> pa.ListArray:
    """What ``find`` finds in each caption, some megabytes of them at a time: list<int32>, shape (R,)."""
    whole = captions.cast(pa.large_string())
    whole = whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
    whole = pc.fill_null(whole, "")
    found = [listed(np.zeros(0, np.int32), np.zeros(0, np.int32), 0)]
    if not len(whole):
        return found[0]
    _, ends, text = whole.buffers()
    offsets = np.frombuffer(ends, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    data = np.frombuffer(text or b"", np.uint8)
    first = 0
    while first < len(whole):
        last = int(np.searchsorted(offsets, offsets[first] + _STEP_BYTES, side="right")) - 1
        last = min(max(last, first + 1), len(whole))
        own = offsets[first : last + 1]
        found.append(listed(*find(data[own[0] : own[-1]], own - own[0]), last - first))
        first = last
    return pa.concat_arrays(found)


def listed(rows: np.ndarray, ids: np.ndarray, n_rows: int) -> pa.ListArray:
    """Ids ascending and each once per row, list<int32> of ``n_rows``, from row and id of hits."""
    both = (rows.astype(np.int64) << 32) | ids
    both.sort(kind="stable")  # three times as fast as the default here: nearly in order by row
    if len(both):
        both = both[np.concatenate([[True], both[1:] != both[:-1]])]
    ends = running(np.bincount(both >> 32, minlength=n_rows))
    return pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.array(both.astype(np.int32), pa.int32())
    )


def running(values: np.ndarray) -> np.ndarray:
    """Sum of the values before each place, and at the end of all, shape (values + 1,)."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=total[1:])
    return total


def row_of_places(bounds: np.ndarray) -> np.ndarray:
    """The row that each place belongs to, from each row's first place and the end, shape (S,)."""
    return np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds))


def tokens(text: str) -> list[str]:
    """The text cut as the matching rule has it; neighbouring spaces leave empty tokens."""
    for mark in MARKS:
        text = text.replace(mark, f" {mark} ")
    for space in SPACES[1:]:
        text = text.replace(space, " ")
    return text.split(" ")
