"""Members become samples: vectorised grouping equals the plain rule, faults keep their places."""

import io

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract import shards, tars
from pretrain.stream import grouping
from pretrain.stream.grouping import PICTURE, RECORD, TEXT

SLOT = {"jpg": PICTURE, "png": PICTURE, "txt": TEXT, "json": RECORD}
members = st.lists(
    st.tuples(st.sampled_from(["a", "b", "é", ""]), st.sampled_from([*SLOT, "pyd", "cls"])),
    max_size=14,
)


def table(rows):
    return pa.Table.from_pylist(
        [
            {
                "shard": "s",
                "key": key,
                "member": member,
                "offset": 512 * (n + 1),
                "size": n,
                "crc32": n,
            }
            for n, (key, member) in enumerate(rows)
        ],
        shards.INDEX_SCHEMA,
    )


def plain(rows):
    """(key, {slot: offset}, whether it is a repeat) of each sample, one row at a time."""
    samples, there, last = [], set(), None
    for n, (key, member) in enumerate(rows):
        if member not in SLOT:
            continue
        if key != last or member in there:
            samples.append((key, {}, any(key == before for before, _, _ in samples)))
            there = set()
        last = key
        there.add(member)
        slots = samples[-1][1]
        if member != "png" or "jpg" not in there:  # jpg comes before png in IMAGE_EXTENSIONS
            slots[SLOT[member]] = 512 * (n + 1)
    return samples


@given(members)
@settings(max_examples=100, deadline=None)
def test_groups_are_those_of_the_plain_rule(rows):
    found = grouping.rows_of("s.tar", table(rows))
    expected = plain(rows)
    assert [found.key(n) for n in range(len(found.sample))] == [key for key, _, _ in expected]
    offsets = [[slots.get(slot, 0) for slot in range(3)] for _, slots, _ in expected]
    assert found.sample["offset"].tolist() == offsets
    assert sorted(found.faults) == [n for n, (_, _, again) in enumerate(expected) if again]
    assert {kind for kind, _ in found.faults.values()} <= {"duplicate_key"}


@given(st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_loses_another_sample_or_goes_unnoticed(where):
    blocks = [
        shards.sample_block(f"k{n}", [("jpg", bytes([n]) * 700), ("txt", b"t"), ("json", b"{}")])[0]
        for n in range(4)
    ]
    content = bytearray(b"".join(blocks) + tars.END)
    whole = grouping.walk("s.tar", io.BytesIO(bytes(content)))
    bit = where % (len(content) * 8)
    content[bit // 8] ^= 1 << bit % 8
    found = grouping.walk("s.tar", io.BytesIO(bytes(content)))
    hit = bit // 8 // len(blocks[0])
    good = {
        found.key(n): found.sample["offset"][n].tolist()
        for n in range(len(found.sample))
        if n not in found.faults
    }
    for n in range(4):
        if n != hit:
            assert good[f"k{n}"] == whole.sample["offset"][n].tolist()
    changed = found.digest() != whole.digest()
    in_padding = not changed and good == {
        whole.key(n): whole.sample["offset"][n].tolist() for n in range(4)
    }
    assert changed or in_padding
    for kind, told in found.faults.values():
        assert kind == "damaged"
        assert "s.tar: " in told
        assert "byte" in told


def test_names_with_folders_and_long_keys_stay_apart():
    content = b"".join(
        tars.member(name, b"x") for name in ("./a/1.jpg", "a/1.txt", "b/1.jpg", "b/1.seg.png")
    )
    found = grouping.walk("s.tar", io.BytesIO(content + tars.END))
    assert [found.key(n) for n in range(len(found.sample))] == ["a/1", "b/1"]
    assert found.sample["offset"][:, TEXT].tolist() == [1536, 0]


@given(st.integers(0, 4), st.integers(1, 2559))
@settings(max_examples=60, deadline=None)
def test_what_a_download_had_not_reached_is_no_sample(reached, into):
    blocks = [
        shards.sample_block(f"k{n}", [("jpg", b"x" * 700), ("txt", b"words")])[0] for n in range(5)
    ]
    here = reached * len(blocks[0]) + into
    content = b"".join(blocks)[:here] + bytes(100_000)
    found = grouping.walk("s.tar", io.BytesIO(content))
    good = [found.key(n) for n in range(len(found.sample)) if n not in found.faults]
    whole = 512 + 1024 + 512 + len(b"words")
    assert good == [f"k{n}" for n in range(reached + (into >= whole))]
    assert {kind for kind, _ in found.faults.values()} == {"damaged"}
    assert found.damage.is_cut
    in_a_header = into < 345 or 1536 < into < 1536 + 345  # behind that all is zeros anyway
    assert in_a_header or found.damage.told.endswith(" of zeros: the download was not finished")
