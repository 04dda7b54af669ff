"""Near copies of a picture by its perceptual hash: of each group one stays, the rest go.

Every pair within the radius is found, none by chance: hashes that differ in at most r bits agree on at
least one of r + 1 bands of bits (the pigeonhole behind Manku et al., WWW 2007, and Norouzi et al., arXiv
1307.2982), so rows meet in a bucket for each band. Large buckets are split once more by the same rule
over the other bits. Bands are cut from the 64 lowest frequencies, where near copies differ least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.filter import linked
from curate.filter.base import Linked
from curate.filter.linked import Pairs, Prefer
from curate.score.phash import coarse
from curate.stage import Stage, StageError

_COARSE_BITS = 64
_RADIUS = {8: 4, 32: 26}  # by the bytes of a hash
_SPLIT_ROWS = 32  # rows of one band's value from which splitting again is cheaper
_BAND_SHIFT = 40  # a band's number stands above its bits, at most 32 where there are two bands


@dataclass(frozen=True, kw_only=True)
class NearDuplicate(Linked):
    """Refuses rows as ``near_duplicate.image`` and writes in ``near_duplicate_of`` the uid that stays.

    Two pictures are copies if their hashes differ in at most ``radius`` bits, and the bits of the 64
    lowest frequencies in at most the same share. Copies of copies belong to one group. Rows without a
    hash are kept.

    Options:
        radius: bits in which copies differ at most, 0 to 63. Left out (None), it goes by the length of
            the hashes: 26 of 256 bits, 4 of 64. Of 256 bits, JPEG and scaling change 2 to 8, a 2 % crop
            about 18, and other photographs differ in 70 and more.
        prefer: which of a group stays: ``first`` in source order, ``largest`` in pixels as fetched, or
            ``largest_stored`` as score.picture_shape measured them.
        column: a binary column with hashes of 64 or 256 bits.

    The state has a row once per band (7 at the default radius, about 100 bytes each), and for repeats
    within a part once. A bucket holds at least the rows that agree in one band: of photographs 1 in
    500. Wider radii have more and shorter bands: slower, never wrong. Time grows with the square of the
    distinct hashes that are all alike.
    """

    refusal: ClassVar[str] = "near_duplicate.image"
    copy_of: ClassVar[str] = "near_duplicate_of"
    bucket_rows: ClassVar[int] = 250_000

    radius: int | None = None
    prefer: Prefer = "first"
    column: str = "phash"

    def reads(self) -> tuple[str, ...]:
        return (self.column, *linked.SIZES[self.prefer], *super().reads())

    def check(self) -> None:
        if self.radius is not None and not 0 <= self.radius < _COARSE_BITS:
            raise ValueError(f"radius = {self.radius}. hint: a number of bits, 0 to 63")

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        kind = types[self.column]
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(
                f"column {self.column!r} is {kind}, not a hash. hint: name a binary column such as phash"
            )

    def check_above(self, above: Sequence[Stage]) -> None:
        linked.check_sizes(self.prefer, above)

    def ranks(self, part: pa.Table) -> np.ndarray:
        return linked.ranks(part, self.prefer)

    def summarize(self, part: pa.Table) -> pa.Table:
        """Each row under the value of each band; a repeat within the part under the first band alone."""
        known = part.filter(part[self.column].is_valid())
        hashes = _bytes_of(known[self.column])
        bits = coarse(hashes)
        first = np.unique(_numbered(hashes), return_index=True)[1]
        masks = _bands(self._coarse_radius(hashes), np.arange(_COARSE_BITS))
        chosen = [np.arange(len(known)), *[first] * (len(masks) - 1)]
        keys = [_key(band, bits[rows], masks[band]) for band, rows in enumerate(chosen)]
        table = self.places(known).append_column("hash", known[self.column].cast(pa.binary()))
        table = table.take(pa.array(np.concatenate(chosen)))
        return table.append_column("key", pa.array(np.concatenate(keys)))

    def links(self, bucket: pa.Table) -> Pairs:
        return linked.forest(len(bucket), self._pairs(bucket))

    def _pairs(self, bucket: pa.Table) -> Iterator[Pairs]:
        """Equal hashes as a chain, then the distinct ones of each band's value with each other."""
        hashes = _bytes_of(bucket["hash"])
        which = _numbered(hashes)
        order = np.argsort(which, kind="stable")
        same = np.flatnonzero(np.diff(which[order]) == 0)
        yield order[same], order[same + 1]
        keys = bucket["key"].to_numpy()
        order = np.lexsort((which, keys))
        rows = order[_changes(which[order]) | _changes(keys[order])]
        words = np.ascontiguousarray(hashes).view(np.uint64)
        bits, near = coarse(hashes), self._coarse_radius(hashes)
        radius = self._radius(hashes)
        for left, right in _candidates(rows, keys[rows], bits, near):
            likely = np.bitwise_count(bits[left] ^ bits[right]) <= near
            left, right = left[likely], right[likely]
            differ = np.bitwise_count(words[left] ^ words[right]).sum(axis=1, dtype=np.int64)
            yield left[differ <= radius], right[differ <= radius]

    def _radius(self, hashes: np.ndarray) -> int:
        size_bytes = hashes.shape[1]
        radius = _RADIUS[size_bytes] if self.radius is None else self.radius
        if radius > 2 * size_bytes:
            raise StageError(
                f"filter.near_duplicate: radius {radius} of {8 * size_bytes} bits links what is not alike. hint: radius = {_RADIUS[size_bytes]}"
            )
        return radius

    def _coarse_radius(self, hashes: np.ndarray) -> int:
        return self._radius(hashes) * _COARSE_BITS // (8 * hashes.shape[1])


def _candidates(rows: np.ndarray, keys: np.ndarray, bits: np.ndarray, near: int) -> Iterator[Pairs]:
    """Pairs of ``rows`` with an equal key, of many-row keys those that agree on one more band.

    ``keys``, shape (rows,), are sorted. ``bits`` is of the whole bucket.
    """
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    large = sizes[group] >= _SPLIT_ROWS
    yield from _pairs_of(rows[~large], group[~large])
    masks = _bands(near, np.arange(_COARSE_BITS))
    band_of = (keys[large] >> _BAND_SHIFT) if len(masks) > 1 else np.zeros(large.sum(), np.int64)
    for band, mask in enumerate(masks):
        inside, own = rows[large][band_of == band], group[large][band_of == band]
        others = np.array([n for n in range(_COARSE_BITS) if not int(mask) >> n & 1], np.int64)
        for finer in _bands(near, others) if len(inside) else ():
            value = bits[inside] & finer
            order = np.lexsort((value, own))
            change = _changes(own[order]) | _changes(value[order])
            yield from _pairs_of(inside[order], np.cumsum(change))


def _pairs_of(rows: np.ndarray, group: np.ndarray) -> Iterator[Pairs]:
    for left, right in linked.pairs_in_groups(group):
        yield rows[left], rows[right]


def _bands(near: int, positions: np.ndarray) -> list[np.uint64]:
    """``near + 1`` masks that share out the bits: neighbouring frequencies go to different bands.

    With fewer bits than bands some masks are empty: on those all rows agree, so all are compared.
    """
    shares = [positions[band :: near + 1] for band in range(near + 1)]
    if any(not len(share) for share in shares):
        return [np.uint64(0)]
    return [np.uint64(sum(1 << int(bit) for bit in share)) for share in shares]


def _key(band: int, bits: np.ndarray, mask: np.uint64) -> np.ndarray:
    """One int64 per row for the value of its band: the band's bits moved together."""
    positions = [n for n in range(_COARSE_BITS) if int(mask) >> n & 1]
    key = np.zeros(len(bits), np.uint64)
    for place, bit in enumerate(positions):
        key |= ((bits >> np.uint64(bit)) & np.uint64(1)) << np.uint64(place)
    return key.view(np.int64) + (band << _BAND_SHIFT)


def _changes(sorted_values: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before it."""
    return np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]])[: len(sorted_values)]


def _numbered(hashes: np.ndarray) -> np.ndarray:
    """A number for each distinct hash, shape (rows,): equal numbers are equal hashes."""
    words = np.ascontiguousarray(hashes).view(np.uint64)
    order = np.lexsort(words.T)
    change = np.any(words[order[1:]] != words[order[:-1]], axis=1)
    number = np.zeros(len(words), np.int64)
    number[order[1:]] = np.cumsum(change)
    return number


def _bytes_of(column: pa.ChunkedArray) -> np.ndarray:
    """Hashes as uint8, shape (rows, bytes). Raises StageError for sizes other than 8 or 32 bytes."""
    values = column.cast(pa.binary()).combine_chunks()
    if not len(values):
        return np.zeros((0, max(_RADIUS)), np.uint8)
    sizes = pc.unique(pc.binary_length(values)).to_pylist()
    if len(sizes) > 1 or sizes[0] not in _RADIUS:
        raise StageError(
            f"filter.near_duplicate: hashes of {sorted(sizes)} bytes. hint: all of 8, or all of 32, as score.phash writes"
        )
    fixed = values.cast(pa.binary(sizes[0]))
    flat = np.frombuffer(
        fixed.buffers()[1], np.uint8, len(fixed) * sizes[0], fixed.offset * sizes[0]
    )
    return flat.reshape(len(fixed), sizes[0])
