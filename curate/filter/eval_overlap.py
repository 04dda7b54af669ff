"""Refuses pictures and captions that an evaluation set holds, too, and says which of its items it was.

What was trained on is no test. A picture is one of a set where their perceptual hashes (the column
``phash`` of score.phash) differ in at most ``radius`` bits, or the cosine of their embeddings is
``similarity`` or more; a caption where the two are equal but for case, punctuation, white space and
Unicode's forms of one letter. CLIP (arXiv 2103.00020, section 5) only reports its overlap, DataComp
(arXiv 2304.14108) removes it from the pool with a copy-detection network; here it is hashes, and
whatever network the embeddings come from.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import storage
from curate.contract.columns import field
from curate.filter import eval_items
from curate.score import vectors
from curate.score.phash import Bits, coarse, phash
from curate.score.picture import decode_uncached
from curate.source.base import identity_files
from curate.stage import KEEP, REASON, RowStage, StageError, path_option

_USE = "filter.eval_overlap"
_BLOCK_ITEMS = 4096
_ROUNDING = 2.0**-50  # of two norms and a quotient, at most: equal embeddings reach a cosine of 1
_REASONS = ["eval_overlap.image", "eval_overlap.caption", "eval_overlap.embedding"]
# Scripts without spaces between words: each character counts as a word.
_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """Items of evaluation sets by what is compared; an empty list of names where nothing is."""

    hash_names: list[str]
    hashes: np.ndarray  # uint8 (items, bytes of a hash)
    captions: dict[str, str]  # normalised -> item
    embedding_names: list[str]
    embeddings: np.ndarray  # float16 (items, D), unit norm


@dataclass(frozen=True, kw_only=True)
class EvalOverlap(RowStage):
    """Refuses as ``eval_overlap.image``, ``.caption`` or ``.embedding``; ``overlap`` names the item.

    Options (``pictures``, ``captions`` and ``embeddings`` are lists of paths, each a file, a folder with
    all below it, a glob or ``{00000..00012}.tar``; one of the three at least):
        pictures: sets whose pictures are looked for by hash: pictures as files, in tar or tar.gz, or in
            parquet with a column ``image`` (the encoded bytes, or a struct with ``bytes``). A parquet with
            a column ``phash``, such as the sidecar of score.phash over the set, spares the hashing.
        bits: length of the hashes, that of score.phash above.
        radius: the most bits in which two hashes of one picture differ; see filter.near_duplicate.
        captions: sets whose captions are looked for: txt (one a line), or csv, tsv, jsonl or parquet
            with a column ``caption``; txt and tables in tars, too.
        min_words: shorter captions of a set ("a dog") are not looked for; anybody may have written them.
            Each sign of a script without spaces (Chinese, Japanese, Thai, ...) counts as a word.
        embeddings: npy or parquet files of the sets' embeddings, made by the model of ``embedding``.
        embedding: the column that they are compared with.
        similarity: the least cosine of two embeddings of one picture.

    Where a row is found in more than one way, the reason is the first of the three; of several items,
    ``overlap`` is the nearest. A picture without a hash (a flat one, one that can't be decoded) is never
    an overlap: how many a set has is logged once per process, and more than half of a set stop the run
    (of 4,500 pictures of Flickr8k, CIFAR-10 and Caltech-101 it is none).
    Every row is compared with every item, so time grows with both: against 50,000 pictures about 4,000
    rows a CPU-second, against half as many twice that.
    """

    batch_rows: ClassVar[int] = 1024

    pictures: tuple[str, ...] = path_option(())
    captions: tuple[str, ...] = path_option(())
    embeddings: tuple[str, ...] = path_option(())
    bits: Bits = 256
    radius: int = 26
    min_words: int = 4
    similarity: float = 0.95
    embedding: str = "embedding_image"

    def reads(self) -> tuple[str, ...]:
        wanted = {
            "phash": self.pictures,
            "caption": self.captions,
            self.embedding: self.embeddings,
        }
        return tuple(name for name, paths in wanted.items() if paths)

    def writes(self) -> pa.Schema:
        return pa.schema([field("overlap"), KEEP, REASON])

    def inputs(self) -> tuple[str, ...]:
        return identity_files([file for files in self._files for file in files])

    def identity(self) -> str:
        """Items' names, and which files are pictures, captions, embeddings: content does not tell."""
        known = [
            [(name, storage.size_bytes(file)) for file, name in files.items()]
            for files in self._files
        ]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def check(self) -> None:
        if not (self.pictures or self.captions or self.embeddings):
            raise ValueError(
                "nothing to compare with. hint: set pictures, captions or embeddings to the files of an evaluation set"
            )
        if not 0 <= self.radius < self.bits // 4:
            raise ValueError(
                f"radius is {self.radius}. hint: 0 to {self.bits // 4 - 1} of {self.bits} bits; half of them is chance"
            )
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}. hint: a cosine above 0, at most 1")
        if self.min_words < 1:
            raise ValueError(f"min_words is {self.min_words}. hint: 1 or more")
        vectors.check_name(self.embedding)
        _ = self._files  # raises for paths that are not there

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        if self.embeddings:
            vectors.check_column(self.embedding, types[self.embedding])

    def open(self) -> Found:
        """Every item in memory, hashed here unless a table has the hashes. Raises StageError."""
        try:
            hash_names, hashes = self._hashes()
            names, embeddings = self._embeddings()
            return Found(hash_names, hashes, self._captions(), names, embeddings)
        except (OSError, ValueError) as fault:
            raise StageError(f"{_USE}: {fault}") from fault

    def process(self, batch: pa.Table, state: Found) -> pa.Table:
        items: list[str | None] = [None] * len(batch)
        codes = np.full(len(batch), -1, np.int32)
        for code, found in enumerate(self._found(batch, state)):
            for row, item in found.items():
                if items[row] is None:
                    items[row], codes[row] = item, code
        kept = codes < 0
        reason = pa.DictionaryArray.from_arrays(pa.array(codes, mask=kept), _REASONS)
        return pa.table(
            [pa.array(items, pa.string()), pa.array(kept), reason], schema=self.writes()
        )

    def _found(self, batch: pa.Table, state: Found) -> Iterator[dict[int, str]]:
        """Row -> item, of each of the three ways to look."""
        yield _near_hashes(batch["phash"], state, self.radius) if self.pictures else {}
        if self.captions:
            texts = normalised(batch["caption"].combine_chunks()).to_pylist()
            yield {n: state.captions[t] for n, t in enumerate(texts) if t in state.captions}
        else:
            yield {}
        if self.embeddings:
            yield _near_embeddings(batch[self.embedding], state, self.similarity)

    @cached_property
    def _files(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """File -> start of its items' names: of pictures, of captions, of embeddings."""
        return (
            eval_items.set_files(self.pictures, eval_items.PICTURE_FILES),
            eval_items.set_files(self.captions, eval_items.CAPTION_FILES),
            eval_items.set_files(self.embeddings, eval_items.EMBEDDING_FILES),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the lists of files, which may be long; a worker makes its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_files"}

    def _hashes(self) -> tuple[list[str], np.ndarray]:
        """Names and hashes of all pictures, equal hashes once."""
        known: dict[bytes, str] = {}
        counts: dict[str, list[int]] = {}  # set -> pictures, those of them without a hash
        for path in self.pictures:
            count = counts.setdefault(path, [0, 0])
            files = eval_items.set_files((path,), eval_items.PICTURE_FILES)
            for item, value in self._hashes_of(files):
                count[0] += 1
                count[1] += value is None
                if value is not None:
                    known.setdefault(value, item)
        if self.pictures and not known:
            raise ValueError(
                f"no picture in {', '.join(self.pictures)} could be read. hint: check `pictures`"
            )
        for path, (pictures, without) in counts.items():
            told = f"{without} of {pictures} pictures of {path} can't be hashed"
            if 2 * without > pictures:
                raise ValueError(
                    f"{told}, so they would never be found. hint: are they damaged, or flat? compare them by `embeddings`"
                )
            if without:
                _log.warning("%s: %s, and are not looked for", _USE, told)
        if len({len(value) for value in known}) > 1:
            raise ValueError(
                "hashes of several lengths. hint: make all of them with one score.phash"
            )
        width = len(next(iter(known), b""))
        packed = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), width)
        return list(known.values()), packed

    def _hashes_of(self, files: dict[str, str]) -> Iterator[tuple[str, bytes | None]]:
        """Name and hash of each picture of some files, None where it has none."""
        for file, name in files.items():
            if eval_items.has_hashes(file):
                yield from eval_items.hashes(file, name)
            else:
                for item, data in eval_items.pictures(file, name):
                    yield item, _hash(data, self.bits)

    def _captions(self) -> dict[str, str]:
        """Normalised caption -> item, of those that are long enough."""
        known: dict[str, str] = {}
        for file, name in self._files[1].items():
            pairs = list(eval_items.captions(file, name))
            texts = normalised(pa.array([text for _, text in pairs], pa.string()))
            long = np.asarray(pc.greater_equal(_words(texts), self.min_words))
            for (item, _), text, is_long in zip(pairs, texts.to_pylist(), long, strict=True):
                if is_long:
                    known.setdefault(text, item)
        if self.captions and not known:
            raise ValueError(
                f"no caption of {self.min_words} words or more in {', '.join(self.captions)}. hint: check `captions` and `min_words`"
            )
        return known

    def _embeddings(self) -> tuple[list[str], np.ndarray]:
        """Names and embeddings of all items, scaled to unit norm as the column is."""
        names: list[str] = []
        arrays: list[np.ndarray] = []
        for file, name in self._files[2].items():
            items, array = eval_items.embeddings(file, name, self.embedding)
            norms = np.linalg.norm(array, axis=1, keepdims=True)
            usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
            if not usable.any():
                raise ValueError(
                    f"{file}: every embedding is zero or not finite. hint: make them again"
                )
            names += [item for item, good in zip(items, usable, strict=True) if good]
            arrays.append((array[usable] / norms[usable]).astype(np.float16))
        if len({array.shape[1] for array in arrays}) > 1:
            raise ValueError("embeddings of several lengths. hint: make all of them with one model")
        return names, np.concatenate(arrays) if arrays else np.zeros((0, 0), np.float16)


def normalised(texts: pa.Array) -> pa.Array:
    """Texts in one form: NFKC, lower case, every run of what is no letter or digit one space."""
    folded = pc.utf8_lower(pc.utf8_normalize(texts, form="NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(folded, r"[^\pL\pN\pM]+", " "))


def _words(texts: pa.Array) -> pa.Array:
    """Words of normalised texts: each sign of a script without spaces, and each run of other letters."""
    signs = pc.count_substring_regex(texts, _NO_SPACES)
    others = pc.replace_substring_regex(texts, _NO_SPACES, " ")
    return pc.add(signs, pc.count_substring_regex(others, "[^ ]+"))


def _hash(data: bytes, bits: Bits) -> bytes | None:
    """score.phash's hash of an encoded picture; None for one that can't be decoded, or a flat one."""
    try:
        return phash(decode_uncached(data), bits)
    except ValueError:
        return None


def _near_hashes(column: pa.ChunkedArray, state: Found, radius: int) -> dict[int, str]:
    """Row -> the item with the nearest hash within ``radius`` bits, the first of equally near ones.

    As in filter.near_duplicate, the 64 lowest frequencies may differ in the same share of their bits;
    they are compared first, and few pairs are left.
    """
    values = column.to_pylist()
    rows = [row for row, value in enumerate(values) if value is not None]
    if not rows:
        return {}
    width = state.hashes.shape[1]
    if any(len(values[row]) != width for row in rows):
        raise StageError(
            f"{_USE}: the column 'phash' has hashes of another length than the sets' {8 * width} bits. hint: set `bits` to that of score.phash"
        )
    own = np.frombuffer(b"".join(values[row] for row in rows), np.uint8).reshape(-1, width)
    left, right = _pairs(coarse(own), coarse(state.hashes), radius * 64 // (8 * width))
    bits = np.bitwise_count(own[left] ^ state.hashes[right]).sum(axis=1)
    near = np.flatnonzero(bits <= radius)
    near = near[np.lexsort((right[near], bits[near], left[near]))]
    left, first = np.unique(left[near], return_index=True)
    return {
        rows[n]: state.hash_names[item] for n, item in zip(left, right[near][first], strict=True)
    }


def _pairs(own: np.ndarray, items: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in ``own`` and ``items``, both uint64, of pairs that differ in at most ``radius`` bits."""
    found: list[np.ndarray] = []
    for start in range(0, len(items), _BLOCK_ITEMS):
        apart = np.bitwise_count(own[:, None] ^ items[None, start : start + _BLOCK_ITEMS])
        found.append(np.argwhere(apart <= radius) + np.array([0, start]))
    left, right = np.concatenate(found).T
    return left, right


def _near_embeddings(column: pa.ChunkedArray, state: Found, similarity: float) -> dict[int, str]:
    """Row -> the item with the greatest cosine of ``similarity`` or more."""
    own, usable = vectors.from_column(column)
    if own.shape[1] != state.embeddings.shape[1]:
        raise StageError(
            f"{_USE}: the sets' embeddings have {state.embeddings.shape[1]} numbers, the column has {own.shape[1]}. hint: make both with one model"
        )
    # Products of float16 are summed in float64 without rounding: the same for any batch (score/vectors).
    wide = own.astype(np.float64)
    norms = np.sqrt(vectors.dot(own, own))
    norms[~usable] = np.inf
    best, at = np.full(len(own), -1.0), np.zeros(len(own), np.int64)
    for start in range(0, len(state.embeddings), _BLOCK_ITEMS):
        block = state.embeddings[start : start + _BLOCK_ITEMS]
        cosines = wide @ block.astype(np.float64).T
        cosines /= norms[:, None] * np.sqrt(vectors.dot(block, block))
        nearest = cosines.argmax(axis=1)
        found = cosines[np.arange(len(own)), nearest]
        nearer = found > best
        best[nearer], at[nearer] = found[nearer], nearest[nearer] + start
    near = np.flatnonzero(best >= similarity - _ROUNDING)
    return {int(n): state.embedding_names[at[n]] for n in near}
