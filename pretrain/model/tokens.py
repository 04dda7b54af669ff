"""open_clip's byte-pair ids, several times faster, where special tokens in a caption stay plain text.

The ids are open_clip's own on every caption but one: a literal `<end_of_text>` in an alt-text becomes
the real end token there, which is also the pooling position. What is faster: text between two spaces
always has the same ids, so each such chunk is looked up in a bounded cache; plain ASCII needs no
repair of its encoding; ids travel as bytes until the whole batch is one array; merges come from a
heap, so a long word costs n log n (open_clip: n squared, minutes for a page without a space).
"""

from __future__ import annotations

import heapq
import pickle
from array import array
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CACHED_CHUNKS = 1 << 16  # some 12 MB in each process
_CACHED_CHARS = 40  # longer chunks seldom come twice
_MERGED = 512  # ids below are single bytes, at the end of a word or not
_SHORT_WORD = 100  # ids; looking at all pairs is faster there
_NONE = 1 << 40

Merges = dict[tuple[int, int], int]  # two ids -> the one they become; lower ones were learned first


class SafeTokenizer:
    """Words to ids, int64 (B, L). Wraps any tokenizer of open_clip; picklable.

    Only open_clip's own byte-pair tokenizer is made safe and fast. The ones from Hugging Face, and
    those with a reduction of long captions, keep their own rules.
    """

    def __init__(self, tokenizer: Any, length: int = 0) -> None:
        self.tokenizer = tokenizer
        self.length = length or int(getattr(tokenizer, "context_length", 0) or 0)
        is_ours = hasattr(tokenizer, "clean_fn") and hasattr(tokenizer, "bpe_ranks")
        if is_ours and not isinstance(tokenizer.clean_fn, _SafeClean):
            special = [tokenizer.decoder[i] for i in tokenizer.all_special_ids]
            tokenizer.clean_fn = _SafeClean(tokenizer.clean_fn, tuple(special))
        self._ids = _ChunkIds(tokenizer) if is_ours and _is_plain(tokenizer) else None

    def __call__(self, texts: str | list[str], length: int | None = None) -> Tensor:
        """``length`` takes the place of the tokenizer's own. Longer captions are cut, and still end."""
        texts = [texts] if isinstance(texts, str) else texts
        length = length or self.length
        if self._ids is None:
            is_own = length == (getattr(self.tokenizer, "context_length", 0) or 0)
            return self.tokenizer(texts) if is_own else self.tokenizer(texts, length)
        whole = np.frombuffer(
            b"".join([self._row(text, length) for text in texts]), self._ids.dtype
        )
        return torch.from_numpy(whole.astype(np.int64).reshape(len(texts), length))

    def with_length(self, length: int) -> SafeTokenizer:
        """The same for another text length; what is cached is shared."""
        twin = object.__new__(SafeTokenizer)
        twin.__dict__.update(self.__dict__, length=length)
        return twin

    def __reduce__(self) -> Any:
        """In bytes of their own, so that a new process has imported open_clip, in our way, before it opens them."""
        return _unpacked, (pickle.dumps(self.__dict__),)

    def _row(self, text: str, length: int) -> bytes:
        """``length`` ids as bytes: start, the caption's, end, zeros."""
        ids = self._ids
        assert ids is not None
        size = ids.dtype.itemsize
        words = self.tokenizer.clean_fn(text).split(" ")
        row = ids.start + b"".join(map(ids.__getitem__, words))
        room = (length - 1) * size
        return (row[:room] + ids.end).ljust(length * size, b"\0")


def _unpacked(state: bytes) -> SafeTokenizer:
    from pretrain.model.encoder import import_open_clip

    import_open_clip()
    made = object.__new__(SafeTokenizer)
    made.__dict__.update(pickle.loads(state))
    return made


class _SafeClean:
    """open_clip's cleaning, then every special token is broken up by a space after its first letter.

    The byte-pair pattern splits there anyway, so the ids are those of the plain characters.
    """

    def __init__(self, clean: Any, special: tuple[str, ...]) -> None:
        self.clean = clean
        self.special = special
        self.is_lower = getattr(clean, "__name__", "") == "_clean_lower"

    def __call__(self, text: str) -> str:
        if self.is_lower and text.isascii() and text.isprintable() and not _has_entity(text):
            text = " ".join(text.split()).lower()
        else:
            text = self.clean(text)
        if "<" in text:
            for token in self.special:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _has_entity(text: str) -> bool:
    """Whether something in it may stand for another character; an ampersand between words does not."""
    return "&" in text and "&" in text.replace("& ", "")


def _is_plain(tokenizer: Any) -> bool:
    """Whether ids follow from merges alone, in the order in which these were learned."""
    known = tokenizer.encoder
    return getattr(tokenizer, "reduction_fn", None) is None and all(
        known.get(left + right) == _MERGED + rank
        for (left, right), rank in tokenizer.bpe_ranks.items()
    )


class _ChunkIds(dict[str, bytes]):
    """Text without a space -> its ids as bytes. Filled as it is asked, emptied when it is full."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.pattern = tokenizer.pat
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self.start = self._bytes([tokenizer.sot_token_id])
        self.end = self._bytes([tokenizer.eot_token_id])
        codes, known = tokenizer.byte_encoder, tokenizer.encoder
        self.inner = [known[codes[byte]] for byte in range(256)]
        self.last = [known[codes[byte] + "</w>"] for byte in range(256)]
        # A pair's merge has its rank for its id, so one table says both what merges, and what first.
        self.merges = {
            (known[left], known[right]): _MERGED + rank
            for (left, right), rank in tokenizer.bpe_ranks.items()
        }
        self[""] = b""

    def __missing__(self, chunk: str) -> bytes:
        if chunk.isascii() and chunk.isalpha():  # most are, and the pattern takes its time
            pieces = [chunk]
        else:
            pieces = self.pattern.findall(chunk)
        if len(pieces) == 1:
            data = pieces[0].encode("utf-8")
            ids = [*map(self.inner.__getitem__, data[:-1]), self.last[data[-1]]]
            found = self._bytes(_merged(ids, self.merges))
        else:
            found = b"".join([self[piece] for piece in pieces])
        if len(chunk) <= _CACHED_CHARS:
            if len(self) >= _CACHED_CHUNKS:
                self.clear()
                self[""] = b""
            self[chunk] = found
        return found

    def _bytes(self, ids: list[int]) -> bytes:
        return array(self.dtype.char, ids).tobytes()

    def __reduce__(self) -> Any:
        return _restored, (dict(self.__dict__),)


def _restored(state: dict[str, Any]) -> _ChunkIds:
    """As it was but for the cache."""
    made = _ChunkIds.__new__(_ChunkIds)
    made.__dict__.update(state)
    made[""] = b""
    return made


def _merged(ids: list[int], merges: Merges) -> list[int]:
    """Byte-pair encoding of one word: always the pair that was learned first, from the left."""
    if len(ids) > _SHORT_WORD:
        return _merged_by_heap(ids, merges)
    find = merges.get
    ranks = [find(pair, _NONE) for pair in pairwise(ids)]
    while ranks:
        first = min(ranks)
        if first == _NONE:
            break
        at = ranks.index(first)
        ids[at : at + 2] = [first]
        del ranks[at]
        if at:
            ranks[at - 1] = find((ids[at - 1], first), _NONE)
        if at < len(ranks):
            ranks[at] = find((first, ids[at + 1]), _NONE)
    return ids


def _merged_by_heap(ids: list[int], merges: Merges) -> list[int]:
    """The same in n log n. A merge makes only pairs that were learned later, so their order is the same."""
    end = len(ids)
    after = list(range(1, end + 1))  # the next id that is still there
    before = list(range(-1, end - 1))
    heap = [(merges[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        merged, at = heapq.heappop(heap)
        right = after[at]
        if right >= end or merges.get((ids[at], ids[right])) != merged:
            continue  # one of the two went into another pair
        ids[at], ids[right] = merged, -1
        after[at] = right = after[right]
        if right < end:
            before[right] = at
        for left, beside in ((before[at], at), (at, right)):
            new = merges.get((ids[left], ids[beside])) if left >= 0 and beside < end else None
            if new is not None:
                heapq.heappush(heap, (new, left))
    return [i for i in ids if i >= 0]
