"""Tars: deterministic, readable by tarfile, and every damage named with file and offset."""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.contract import tars


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    return b"".join(tars.member(name, data) for name, data in members) + tars.END


@given(st.lists(st.binary(max_size=1500), max_size=5))
def test_tarfile_reads_what_we_write(datas: list[bytes]) -> None:
    members = [(f"{n:032x}.jpg", data) for n, data in enumerate(datas)]
    with tarfile.open(fileobj=io.BytesIO(tar_of(members))) as tar:
        assert [(m.name, tar.extractfile(m).read()) for m in tar] == members  # type: ignore[union-attr]


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=25),
    st.binary(max_size=2000),
)
def test_a_member_is_what_tarfile_writes_without_time_and_owner(name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    expected = info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % 512)
    # Versions of tarfile differ in whether no device is zeros or nothing.
    device, checksum = slice(329, 345), slice(148, 156)
    same = bytearray(tars.member(name, data))
    assert same[device].strip(b"0\0") == expected[device].strip(b"0\0") == b""
    if same[device] == expected[device]:
        assert bytes(same) == expected
    same[device], same[checksum] = expected[device], expected[checksum]
    assert bytes(same) == expected


def test_offsets_point_at_the_data() -> None:
    data = tar_of([("a.txt", b"one"), ("b.txt", b"x" * 513), ("c.txt", b"")])
    found = list(tars.walk(io.BytesIO(data), "t.tar"))
    assert [m.name for m in found] == ["a.txt", "b.txt", "c.txt"]
    assert all(data[m.offset : m.offset + m.size] == m.data for m in found)


@given(st.lists(st.binary(max_size=1500), max_size=5))
def test_places_are_where_walk_finds_the_data(datas: list[bytes]) -> None:
    data = tar_of([(f"{n:032x}.jpg", data) for n, data in enumerate(datas)])
    found = [(m.name, m.offset, m.size) for m in tars.walk(io.BytesIO(data), "t.tar")]
    assert list(tars.places(io.BytesIO(data), "t.tar")) == found


def test_places_name_damage_as_walk_does() -> None:
    data = bytearray(tar_of([("a.jpg", b"x" * 700), ("b.jpg", b"y" * 700)]))
    for cut in (600, 1000, 1600, 2500, len(data) - 1024):
        for reader in (tars.places, tars.walk):
            with pytest.raises(tars.TarDamage, match="at byte"):
                list(reader(io.BytesIO(data[:cut]), "t.tar"))
    data[1536 + 2] ^= 1
    with pytest.raises(tars.TarDamage, match="bad header at byte 1536"):
        list(tars.places(io.BytesIO(data), "t.tar"))


def test_places_are_of_our_own_tars_only() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("folder")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    with pytest.raises(tars.TarDamage, match="a member of type b'5'"):
        list(tars.places(buffer, "t.tar"))


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_reads_long_names_of_other_writers(style: int) -> None:
    name = "folder/" + "n" * 150 + ".jpg"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        info.mtime = 1.5  # type: ignore[assignment]
        tar.addfile(info, io.BytesIO(b"abc"))
    buffer.seek(0)
    assert [(m.name, m.data) for m in tars.walk(buffer, "t")] == [(name, b"abc")]


def test_a_flipped_header_bit_is_named() -> None:
    data = bytearray(tar_of([("a.txt", b"one"), ("b.txt", b"two")]))
    data[1024 + 3] ^= 1
    with pytest.raises(tars.TarDamage, match=r"s\.tar: bad header at byte 1024"):
        list(tars.walk(io.BytesIO(bytes(data)), "s.tar"))


def test_a_cut_member_is_named() -> None:
    data = tar_of([("a.txt", b"x" * 2000)])[:1500]
    with pytest.raises(tars.TarDamage, match=r"'a\.txt' at byte 0 is cut: 988 of 2000 bytes"):
        list(tars.walk(io.BytesIO(data), "s.tar"))


@pytest.mark.parametrize(
    "record", [b"0 path=x\n", b"-3 path=x\n", b"zz path=x\n", b"99 path=x\n", b" "]
)
def test_an_extended_header_that_leads_nowhere_is_named(record: bytes) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    data = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of([("a.txt", b"one")])
    with pytest.raises(tars.TarDamage, match=r"bad header at byte 0: extended header"):
        list(tars.walk(io.BytesIO(data), "s.tar"))


def test_a_missing_end_is_named() -> None:
    data = tar_of([("a.txt", b"one")])[:1024]
    with pytest.raises(tars.TarDamage, match="without an end-of-archive block"):
        list(tars.walk(io.BytesIO(data), "s.tar"))


def test_no_name_longer_than_ustar_allows() -> None:
    with pytest.raises(ValueError, match="over 100 bytes"):
        tars.member("n" * 101, b"")


@pytest.mark.parametrize(
    ("data", "extension"),
    [(b"\xff\xd8\xff\xe0", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF1234WEBP", "webp"), (b"GIF89a", "gif"), (b"\0\0\0\x1cftypavif", "avif"), (b"<html>", "bin")],
)  # fmt: skip
def test_the_extension_comes_from_the_bytes(data: bytes, extension: str) -> None:
    assert tars.image_extension(data) == extension


@pytest.mark.parametrize("size", [1 << 62, -5])
def test_a_header_that_claims_an_absurd_size_is_named(size: int) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = size
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(tars.TarDamage, match="bad header at byte 0"):
        list(tars.walk(io.BytesIO(header + b"x" * 512), "s.tar"))


def survey(data: bytes) -> tuple[list[str], list[tars.Gap]]:
    found = list(tars.survey(io.BytesIO(data), "t.tar"))
    names = [member.name for member in found if isinstance(member, tars.Member)]
    return names, [gap for gap in found if isinstance(gap, tars.Gap)]


MEMBERS = [(f"{n}.jpg", bytes([n]) * 700) for n in range(4)]


def test_a_survey_of_a_whole_tar_is_a_walk() -> None:
    data = tar_of(MEMBERS)
    assert list(tars.survey(io.BytesIO(data), "t")) == list(tars.walk(io.BytesIO(data), "t"))
    padded = data + bytes(10240)
    assert survey(padded) == ([name for name, _ in MEMBERS], [])


@given(st.integers(0, 3), st.integers(0, 8 * 512 - 1))
def test_one_flipped_bit_in_a_header_loses_that_member_alone(number: int, bit: int) -> None:
    data = bytearray(tar_of(MEMBERS))
    start = number * 3 * 512
    data[start + bit // 8] ^= 1 << bit % 8
    names, gaps = survey(bytes(data))
    others = [name for at, (name, _) in enumerate(MEMBERS) if at != number]
    if gaps:
        assert names == others
        assert [(gap.offset, gap.end - 1536 * (number < 3)) for gap in gaps] == [
            (start, start if number < 3 else len(data))
        ]
        assert f"t.tar: bad header at byte {start}" in gaps[0].fault
    else:  # e.g. a digit of the checksum's own padding: then nothing is lost
        assert names == [name for name, _ in MEMBERS]


@pytest.mark.parametrize(
    ("cut", "names", "gap", "fault"),
    [
        (1536 + 900, 1, (1536, 1536 + 900), "'1.jpg' at byte 1536 is cut: 388 of 700 bytes"),
        (2 * 1536, 2, (2 * 1536, 2 * 1536), "ends at byte 3072 without an end-of-archive block"),
        (0, 0, (0, 0), "ends at byte 0 without"),
    ],
)
def test_a_cut_tar_is_one_gap_at_its_end(cut: int, names: int, gap: Any, fault: str) -> None:
    found, gaps = survey(tar_of(MEMBERS)[:cut])
    assert found == [name for name, _ in MEMBERS[:names]]
    assert [(one.offset, one.end) for one in gaps] == [gap]
    assert fault in gaps[0].fault


def test_zeros_in_the_midst_are_no_end() -> None:
    data = bytearray(tar_of(MEMBERS))
    data[1536 : 2 * 1536] = bytes(1536)
    names, gaps = survey(bytes(data))
    assert names == ["0.jpg", "2.jpg", "3.jpg"]
    assert gaps == [tars.Gap(1536, 3072, "t.tar: empty blocks at byte 1536, not at the end")]


def test_what_is_no_tar_is_one_gap() -> None:
    page = b"<html>" + b"not found " * 500
    names, gaps = survey(page)
    assert not names
    assert [(gap.offset, gap.end) for gap in gaps] == [(0, len(page))]


@pytest.mark.parametrize("record", [1024, 10_240, 65_536])
@pytest.mark.parametrize("members", [0, 1, 7])
def test_the_padding_of_any_writer_is_an_end(record: int, members: int) -> None:
    buffer = io.BytesIO()
    plain = [(f"{n}.jpg", bytes([n + 1]) * (700 + n * 1500)) for n in range(members)]
    buffer.write(tar_of(plain))
    buffer.write(bytes(-buffer.tell() % record))
    names = [name for name, _ in plain]
    assert survey(buffer.getvalue()) == (names, [])
    buffer.seek(0)
    assert [member.name for member in tars.walk(buffer, "t.tar")] == names


def test_padding_of_pythons_own_writer_is_an_end() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = (
            9 * 512
        )  # its header and data leave one block of the record: the longest padding
        tar.addfile(info, io.BytesIO(b"x" * info.size))
    assert survey(buffer.getvalue()) == (["a.jpg"], [])


@pytest.mark.parametrize("odd", [0, 300])
def test_a_tail_of_zeros_is_a_download_that_was_not_finished(odd: int) -> None:
    whole = b"".join(tars.member(name, data) for name, data in MEMBERS[:2])
    zeros = tars.MOST_PADDING_BYTES + 512 + odd
    told = f"t.tar: the rest from byte {len(whole)} is {zeros} bytes of zeros: the download was not finished"
    names, gaps = survey(whole + bytes(zeros))
    assert names == ["0.jpg", "1.jpg"]
    assert gaps == [tars.Gap(len(whole), len(whole) + zeros, told, is_zeros=True)]
    with pytest.raises(tars.TarDamage, match=told) as fault:
        list(tars.walk(io.BytesIO(whole + bytes(zeros)), "t.tar"))
    assert fault.value.offset == len(whole)


def test_zeros_before_more_members_are_no_unfinished_download() -> None:
    data = tar_of(MEMBERS[:2]) + bytes(1 << 20) + tar_of(MEMBERS[2:])
    names, gaps = survey(data)
    assert names == [name for name, _ in MEMBERS]
    assert [(gap.end - gap.offset > 1 << 20, gap.is_zeros) for gap in gaps] == [(True, False)]
    assert len(list(tars.walk(io.BytesIO(data), "t.tar"))) == 2
