"""near_duplicate.image: exactly the groups of a brute-force comparison, for any parts, buckets and order."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filter import near_duplicate
from curate.filter.near_duplicate import NearDuplicate
from curate.stage import StageError, pool_state


def hash_table(hashes: list[bytes | None], **columns: list[Any]) -> pa.Table:
    uids = [f"u{n}" for n in range(len(hashes))]
    return pa.table({"uid": uids, "phash": pa.array(hashes, pa.binary()), **columns})


def clustered(seed: int, rows: int, size_bytes: int, flips: int) -> list[bytes | None]:
    """Hashes around a few centres, each up to ``flips`` bits away; repeats and nulls among them."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (max(1, rows // 6), size_bytes), np.uint8)
    picked = np.unpackbits(centres[rng.integers(len(centres), size=rows)], axis=1)
    for row in picked:
        chosen = rng.choice(8 * size_bytes, rng.integers(0, flips + 1), replace=False)
        row[chosen] ^= 1
    found: list[bytes | None] = [bytes(row) for row in np.packbits(picked, axis=1)]
    for n in rng.integers(0, rows, rows // 10):
        found[n] = None if n % 2 else found[0]
    return found


def brute_force(
    hashes: list[bytes | None], radius: int, rank: list[int] | None = None
) -> list[Any]:
    """For each row the number of the row that stays for it, or None: all pairs, plain Python."""
    group = list(range(len(hashes)))

    def root(n: int) -> int:
        while group[n] != n:
            n = group[n]
        return n

    for i, j in combinations(range(len(hashes)), 2):
        left, right = hashes[i], hashes[j]
        if left is None or right is None:
            continue
        whole = (int.from_bytes(left) ^ int.from_bytes(right)).bit_count()
        low = slice(0, 16, 2) if len(left) == 32 else slice(None)
        part = (int.from_bytes(left[low]) ^ int.from_bytes(right[low])).bit_count()
        if whole <= radius and part <= radius * 8 // len(left):
            group[root(j)] = root(i)
    members: dict[int, list[int]] = {}
    for n in range(len(hashes)):
        members.setdefault(root(n), []).append(n)
    kept = {
        n: min(all_, key=lambda m: ((rank or [0] * len(hashes))[m], m))
        for all_ in members.values()
        for n in all_
    }
    return [None if kept[n] == n else f"u{kept[n]}" for n in range(len(hashes))]


def decided(
    stage: NearDuplicate, table: pa.Table, cut: int, buckets: int, seed: int = 0
) -> pa.Table:
    """The stage as the runner runs it: parts of ``cut`` rows, buckets by a hash, partials in any order."""
    places = np.arange(len(table))
    table = table.append_column("part", pa.array(places // cut)).append_column(
        "row", pa.array(places % cut)
    )
    parts = [table.slice(start, cut) for start in range(0, len(table), cut)]
    partials = [stage.summarize(part) for part in parts]
    shuffled = [partials[n] for n in np.random.default_rng(seed).permutation(len(partials))]
    closed = []
    for bucket in range(buckets):
        own = [
            p.filter(
                pa.array(
                    [zlib.crc32(str(k).encode()) % buckets == bucket for k in p["key"].to_pylist()],
                    pa.bool_(),
                )
            )
            for p in shuffled
        ]
        first, rest = own[: len(own) // 2], own[len(own) // 2 :]
        merged = [stage.merge(some) for some in (first, rest) if some]
        closed.append(stage.close(stage.merge(merged)))
    state = stage.settle(closed)
    done = []
    for part in parts:
        routed = state.filter(
            pa.array([p == part["part"][0].as_py() for p in state["part"].to_pylist()], pa.bool_())
        )
        done.append(stage.decide(part, routed))
    return pa.concat_tables(done, promote_options="permissive")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 90),
    size_bytes=st.sampled_from([8, 32]),
    radius=st.sampled_from([0, 1, 3, 4, 6, 8, 13, 26, 40, 63]),
    cut=st.integers(1, 91),
    buckets=st.integers(1, 5),
)
def test_groups_are_those_of_all_pairs(
    seed: int, rows: int, size_bytes: int, radius: int, cut: int, buckets: int
) -> None:
    radius = min(radius, 2 * size_bytes)
    hashes = clustered(seed, rows, size_bytes, max(1, radius))
    done = decided(NearDuplicate(radius=radius), hash_table(hashes), cut, buckets, seed)
    assert done["near_duplicate_of"].to_pylist() == brute_force(hashes, radius)


@pytest.mark.parametrize(("size_bytes", "radius"), [(8, 4), (8, 7), (32, 26)])
def test_each_pair_in_a_large_bucket_is_found_by_one_band_alone(
    size_bytes: int, radius: int
) -> None:
    """Pairs at the radius itself that agree in one band, and of its other bits in one finer band."""
    rng = np.random.default_rng(size_bytes + radius)
    near = radius * 8 // size_bytes
    bands = [list(range(band, 64, near + 1)) for band in range(near + 1)]
    hashes: list[bytes | None] = []
    for shared, band in enumerate(bands):
        others = [bit for bit in range(64) if bit not in band]
        bits = rng.integers(0, 2, (32 + 2 * len(bands), 8 * size_bytes)).astype(bool)
        bits[:, _low(size_bytes)[band]] = rng.integers(0, 2, len(band))
        for agreed in range(len(bands)):
            left, right = 32 + 2 * agreed, 33 + 2 * agreed
            bits[right] = bits[left]
            finer = [others[n :: near + 1] for n in range(near + 1) if n != agreed]
            rest = [bits for number, bits in enumerate(bands) if number != shared]
            low = _low(size_bytes)[_one_of_each(rest, finer)]
            high = np.setdiff1d(np.arange(8 * size_bytes), _low(size_bytes))
            bits[right, np.concatenate([low, high[: radius - near]])] ^= True
        hashes += [_packed_bits(row) for row in bits]
    wanted = brute_force(hashes, radius)
    assert sum(one is not None for one in wanted) == len(bands) ** 2
    done = decided(NearDuplicate(radius=radius), hash_table(hashes), 1000, 3)
    assert done["near_duplicate_of"].to_pylist() == wanted


def _low(size_bytes: int) -> np.ndarray:
    """Numbers of the 64 bits that bands are cut from, as ``phash.coarse`` takes them."""
    first = np.arange(8) * (8 if size_bytes == 8 else 16)
    return (first[:, None] + np.arange(8)).ravel()


def _packed_bits(row: np.ndarray) -> bytes:
    return np.packbits(row, bitorder="little").tobytes()


def _one_of_each(bands: list[list[int]], finer: list[list[int]]) -> list[int]:
    """As many bits as there are bands, no two of one band or of one finer band."""
    for order in permutations(finer):
        common = [set(band) & set(cut) for band, cut in zip(bands, order, strict=True)]
        if all(common):
            return [min(bits) for bits in common]
    raise AssertionError("no such bits")


@pytest.mark.parametrize(("size_bytes", "radius"), [(8, 0), (8, 4), (32, 26), (32, 63)])
def test_split_buckets_find_the_same(
    size_bytes: int, radius: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicate, "_SPLIT_ROWS", 3)
    hashes = clustered(5, 300, size_bytes, max(1, radius))
    done = decided(NearDuplicate(radius=radius), hash_table(hashes), 77, 2)
    assert done["near_duplicate_of"].to_pylist() == brute_force(hashes, radius)


def test_a_hundred_parts_decide_as_one() -> None:
    table = hash_table(clustered(7, 2000, 32, 20))
    whole = decided(NearDuplicate(), table, 2000, 1).to_pylist()
    assert sum(row["keep"] for row in whole) < 1900
    for parts, buckets in ((7, 3), (100, 8)):
        assert decided(NearDuplicate(), table, -(-2000 // parts), buckets).to_pylist() == whole


def test_the_largest_stays_where_it_is_preferred() -> None:
    one, near = bytes(32), bytes(31) + b"\x03"
    table = hash_table(
        [one, near, one, b"\xff" * 32, one],
        original_width=[10, 40, 40, 1, None],
        original_height=[10, 30, 30, 1, 99],
    )
    done = decided(NearDuplicate(prefer="largest"), table, 2, 2)
    assert done["near_duplicate_of"].to_pylist() == ["u1", None, "u1", None, "u1"]
    assert done["reason"].to_pylist() == [
        *["near_duplicate.image", None, "near_duplicate.image", None, "near_duplicate.image"]
    ]
    stored = table.append_column("min_side_px", pa.array([10, 30, 30, 1, None]))
    stored = stored.append_column("aspect_ratio", pa.array([1.0, 4 / 3, 4 / 3, 1.0, None]))
    stage = NearDuplicate(prefer="largest_stored")
    assert set(stage.reads()) == {"phash", "min_side_px", "aspect_ratio", "part", "row"}
    own = stored.drop_columns(["original_width", "original_height"])
    assert decided(stage, own, 2, 2) == done
    first = decided(NearDuplicate(), table, 2, 2)
    assert first["near_duplicate_of"].to_pylist() == [None, "u0", "u0", None, "u0"]


def test_copies_of_copies_are_one_group() -> None:
    """The third is too far from the first, but like the second."""
    steps = [bytes(8), b"\x0f" + bytes(7), b"\xff" + bytes(7)]
    done = decided(NearDuplicate(radius=4), hash_table([*steps]), 1, 3)
    assert done["near_duplicate_of"].to_pylist() == [None, "u0", "u0"]


def test_many_equal_hashes_are_one_chain() -> None:
    """Two hundred thousand rows of two hashes: compared pairwise this would take hours."""
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (2, 32), np.uint8)
    two = one.copy()
    two[31] ^= 1
    hashes: list[bytes | None] = [one.tobytes(), two.tobytes()] * 100_000
    table = hash_table(hashes, part=[n // 50_000 for n in range(200_000)], row=[n % 50_000 for n in range(200_000)])  # fmt: skip
    stage = NearDuplicate()
    parts = [table.slice(start, 50_000) for start in range(0, 200_000, 50_000)]
    state = pool_state(stage, lambda: parts)
    kept = sum(sum(stage.decide(part, state)["keep"].to_pylist()) for part in parts)
    assert (kept, len(state)) == (1, 199_999)
    assert len(stage.summarize(parts[0])) == 50_000 + 2 * 6


def test_hashes_of_two_sizes_stop_the_run() -> None:
    with pytest.raises(StageError, match=r"hashes of \[8, 32\] bytes"):
        decided(NearDuplicate(), hash_table([bytes(8), bytes(32)]), 2, 1)


@pytest.mark.parametrize(("size_bytes", "radius"), [(8, 4), (32, 26)])
def test_the_radius_left_out_fits_the_hash(size_bytes: int, radius: int) -> None:
    hashes = clustered(11, 60, size_bytes, 3 * radius)
    done = decided(NearDuplicate(), hash_table(hashes), 60, 1)
    assert done["near_duplicate_of"].to_pylist() == brute_force(hashes, radius)


def test_a_radius_too_wide_for_the_hash_stops_the_run() -> None:
    """26 of 64 bits would refuse nearly every picture."""
    with pytest.raises(StageError, match="hint: radius = 4"):
        decided(NearDuplicate(radius=26), hash_table([bytes(8), bytes(8)]), 2, 1)


def test_options_that_cannot_work() -> None:
    with pytest.raises(ValueError, match="hint: a number of bits, 0 to 63"):
        NearDuplicate(radius=64).check()
    with pytest.raises(ValueError, match="hint: name a binary column"):
        NearDuplicate(column="width").check_columns({"width": pa.int32()})


@pytest.mark.parametrize(("rows_per_part", "rows_per_bucket"), [(100, 1000), (5, 4), (1, 7)])
def test_a_run_refuses_copies_of_pictures(
    curate_recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows_per_part: int,
    rows_per_bucket: int,
) -> None:
    """From files to reasons, for one part and for many: 9 photographs, each again at half the size."""
    from PIL import Image

    from curate.contract import parts
    from pipelines import curation
    from pipelines.part import sidecar
    from pipelines.plan import plan_curation
    from pipelines.run_local import LocalRunner
    from tests.pipelines.test_curation import Quiet

    monkeypatch.setattr(NearDuplicate, "bucket_rows", rows_per_bucket)
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(9):
        cells = np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        image = Image.fromarray(cells).resize((160, 120), Image.Resampling.BICUBIC)
        image.save(folder / f"{n}-a.jpg")
        image.resize((80, 60)).save(folder / f"{n}-b.jpg", quality=60)
        for name in "ab":
            (folder / f"{n}-{name}.txt").write_text(f"words {n}{name}")
    source = {"use": "source.folder", "path": str(folder), "rows_per_part": rows_per_part}
    stages = [{"use": "score.phash"}, {"use": "filter.near_duplicate"}]
    plan = plan_curation(curate_recipe(source, stages))
    curation.run(plan, LocalRunner(), Quiet())
    numbers = range(-(-18 // rows_per_part))
    table = pa.concat_tables(
        [parts.read_table(sidecar(plan, plan.stages[-1], n)) for n in numbers],
        promote_options="permissive",
    )
    uids = table["uid"].to_pylist()
    assert table["near_duplicate_of"].to_pylist() == [
        None if n % 2 == 0 else uids[n - 1] for n in range(18)
    ]
