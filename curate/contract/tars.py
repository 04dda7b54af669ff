"""Plain ustar members: deterministic bytes out, every header checked on the way in.

No wall-clock times, owners or PAX records are written, so equal content is equal bytes. On
reading, a header whose checksum is wrong, a truncated member or a missing end is an error that
names file and offset; webdataset, open_clip and Ray Data drop the rest of such a tar silently. So is
a tail of zeros longer than any writer pads with: a file of full size whose download was not finished.
``survey`` names the damage too, and goes on behind it at the next header whose checksum is right.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

BLOCK_BYTES = 512
END = b"\0" * (2 * BLOCK_BYTES)
# Writers fill the last record: none (Go, Rust, ours), or 10,240 bytes (GNU tar, bsdtar, Python's tarfile and
# so webdataset), or more where told to. Two empty blocks, and a record of 64 KiB.
MOST_PADDING_BYTES = len(END) + (1 << 16)
_MAX_NAME_BYTES = 100
_OWNER = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
_TIME = b"\0" + b"0" * 11 + b"\0"  # the end of the size, then the time
# The end of the checksum, a regular file, no link, magic, no names, no device, no prefix, padding.
_REST = b"\0 0" + bytes(100) + b"ustar\x0000" + bytes(64) + bytes(16) + bytes(155 + 12)
_REST_SUM = sum(_OWNER) + sum(_TIME) + sum(_REST) - sum(b"\0 ") + 8 * ord(" ")
_MAX_MEMBER_BYTES = 1 << 31  # a header may claim anything; no sample is near this
_MAGIC_AT = 257  # where "ustar" stands in a header
_SCAN_BYTES = 1 << 22  # a multiple of BLOCK_BYTES


class TarDamage(Exception):
    """A tar that is not what its headers say. The message has the path, the offset and what was found."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class Unfinished(TarDamage):
    """Zeros up to the file's end, more than any writer pads with. They may begin in the member before."""


@dataclass(frozen=True)
class Member:
    """One file in a tar. ``offset`` is that of its data, in bytes from the tar's start."""

    name: str
    offset: int
    size: int
    data: bytes


def member(name: str, data: bytes) -> bytes:
    """Header, data and padding of one member, as ustar."""
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"tar member name over {_MAX_NAME_BYTES} bytes: {name!r}")
    return b"".join((_header(name.encode(), len(data)), data, bytes(-len(data) % BLOCK_BYTES)))


def _header(name: bytes, size: int) -> bytes:
    """What tarfile writes for a regular file without owner and time, at a tenth of its cost."""
    if size >= 8**11:
        raise ValueError(f"tar member over 8 GiB: {name!r}")
    octal = b"%011o" % size
    # The checksum counts its own eight bytes as spaces; all that never changes is in _REST_SUM.
    checksum = b"%06o" % (sum(name) + sum(octal) + _REST_SUM)
    return b"".join(
        (name, bytes(_MAX_NAME_BYTES - len(name)), _OWNER, octal, _TIME, checksum, _REST)
    )


@dataclass(frozen=True)
class Gap:
    """Bytes of a tar that no header accounts for: from ``offset`` up to ``end``."""

    offset: int
    end: int
    fault: str
    is_zeros: bool = False  # up to the end of a file that was not finished


def walk(file: IO[Any], path: str) -> Iterator[Member]:
    """Every regular file of a tar in order. ``path`` is for messages only. Raises TarDamage."""
    return _walk(file, path, 0)


def survey(file: IO[Any], path: str) -> Iterator[Member | Gap]:
    """Every regular file of a tar that may be damaged, and the gaps between them, in order."""
    start: int | None = 0
    while start is not None:
        fault, is_zeros = "", False
        try:
            gap = yield from _walk(file, path, start)
        except TarDamage as found:
            fault, gap, is_zeros = str(found), found.offset, isinstance(found, Unfinished)
        start = None if is_zeros else _next_header(file, path, gap + BLOCK_BYTES)
        if fault or start is not None:
            end = file.seek(0, 2) if start is None else start
            fault = fault or f"{path}: empty blocks at byte {gap}, not at the end"
            yield Gap(gap, end, fault, is_zeros)


def _next_header(file: IO[Any], path: str, offset: int) -> int | None:
    """The first place from ``offset`` on, in whole blocks, at which a valid ustar header stands."""
    file.seek(offset)
    while found := file.read(_SCAN_BYTES):
        for inside in range(0, len(found) - BLOCK_BYTES + 1, BLOCK_BYTES):
            block = found[inside : inside + BLOCK_BYTES]
            if block.startswith(b"ustar", _MAGIC_AT) and _is_header(block, path):
                return offset + inside
        offset += len(found)
    return None


def _is_header(block: bytes, path: str) -> bool:
    try:
        return _next(block, path, 0) is not None
    except TarDamage:
        return False


def _walk(file: IO[Any], path: str, start: int) -> Generator[Member, None, int]:
    """The members from ``start`` on; returns where the empty block stands that ends them."""
    offset = file.seek(start)
    long_name: str | None = None
    while (head := _next(file.read(BLOCK_BYTES), path, offset)) is not None:
        data = file.read(head.size)
        if len(data) < head.size:
            raise TarDamage(_cut(head, path, offset, len(data)), offset)
        file.read(-head.size % BLOCK_BYTES)
        if head.kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            try:
                long_name = _long_name(head.kind, data) or long_name
            except ValueError as fault:
                raise TarDamage(f"{path}: bad header at byte {offset}: {fault}", offset) from fault
        elif head.kind in tarfile.REGULAR_TYPES:
            yield Member(long_name or head.name, offset + BLOCK_BYTES, head.size, data)
            long_name = None
        offset += BLOCK_BYTES + head.size + (-head.size % BLOCK_BYTES)
    _refuse_zeros(file, path, offset)
    return offset


def _refuse_zeros(file: IO[Any], path: str, offset: int) -> None:
    """Raise Unfinished where all is zeros behind the empty block at ``offset``, and too much for padding."""
    count = BLOCK_BYTES
    while found := file.read(_SCAN_BYTES):
        if found != bytes(len(found)):
            return
        count += len(found)
    if count > MOST_PADDING_BYTES:
        raise Unfinished(
            f"{path}: the rest from byte {offset} is {count} bytes of zeros: the download was not finished",
            offset,
        )


def places(file: IO[Any], path: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, its size) of every file in a tar of ours, the data left unread.

    Raises TarDamage as ``walk`` does, and for members that we never write.
    """
    end = file.seek(0, 2)
    offset = file.seek(0)
    while (head := _next(file.read(BLOCK_BYTES), path, offset)) is not None:
        if head.kind != tarfile.REGTYPE:
            raise TarDamage(f"{path}: bad header at byte {offset}: a member of type {head.kind!r}")
        if offset + BLOCK_BYTES + head.size > end:
            raise TarDamage(_cut(head, path, offset, max(0, end - offset - BLOCK_BYTES)))
        yield head.name, offset + BLOCK_BYTES, head.size
        offset = file.seek(offset + BLOCK_BYTES + head.size + (-head.size % BLOCK_BYTES))


class _Head(NamedTuple):
    name: str
    size: int
    kind: bytes


def _next(header: bytes, path: str, offset: int) -> _Head | None:
    """What the header at ``offset`` says; None at the end of the archive. Raises TarDamage."""
    if len(header) < BLOCK_BYTES:
        raise TarDamage(
            f"{path}: ends at byte {offset + len(header)} without an end-of-archive block", offset
        )
    name, digits = header[:_MAX_NAME_BYTES].rstrip(b"\0"), header[124:135]
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:
        size = int(digits, 8)
        if size <= _MAX_MEMBER_BYTES and name and header == _header(name, size):
            return _Head(name.decode("utf-8", "surrogateescape"), size, tarfile.REGTYPE)
    elif header == bytes(BLOCK_BYTES):
        return None
    try:  # not as we write them
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as fault:
        raise TarDamage(f"{path}: bad header at byte {offset}: {fault}", offset) from fault
    if not 0 <= info.size <= _MAX_MEMBER_BYTES:
        raise TarDamage(f"{path}: bad header at byte {offset}: a size of {info.size} bytes", offset)
    return _Head(info.name, info.size, info.type)


def _cut(head: _Head, path: str, offset: int, found_bytes: int) -> str:
    return f"{path}: {head.name!r} at byte {offset} is cut: {found_bytes} of {head.size} bytes"


def _long_name(kind: bytes, data: bytes) -> str | None:
    """The name carried by a GNU long-name member or by a PAX ``path`` record. Raises ValueError."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while data:
        length = data.partition(b" ")[0]
        # A length that does not move on would be read for ever.
        if not (length.isdigit() and len(length) < 10 and len(length) < int(length) <= len(data)):
            raise ValueError(f"extended header with a record of length {length[:10]!r}")
        record, data = data[: int(length)], data[int(length) :]
        key, _, value = record.partition(b" ")[2].rstrip(b"\n").partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return None


def image_extension(data: bytes) -> str:
    """jpg, png, webp, gif, avif or bin, from the first bytes and never from a name."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return "bin"
