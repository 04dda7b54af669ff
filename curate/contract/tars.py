"""Plain ustar members: deterministic bytes out, every header checked on the way in.

No wall-clock times, owners or PAX records are written, so equal content is equal bytes. On
reading, a header whose checksum is wrong, a truncated member or a missing end is an error that
names file and offset; webdataset, open_clip and Ray Data drop the rest of such a tar silently.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

BLOCK_BYTES = 512
END = b"\0" * (2 * BLOCK_BYTES)
_MAX_NAME_BYTES = 100
_MAX_MEMBER_BYTES = 1 << 31  # a header may claim anything; no sample is near this


class TarDamage(Exception):
    """A tar that is not what its headers say. The message has the path, the offset and what was found."""


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
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % BLOCK_BYTES)


def walk(file: IO[Any], path: str) -> Iterator[Member]:
    """Every regular file of a tar in order. ``path`` is for messages only. Raises TarDamage."""
    offset = 0
    long_name: str | None = None
    while True:
        header = file.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            raise TarDamage(
                f"{path}: ends at byte {offset + len(header)} without an end-of-archive block"
            )
        if header == b"\0" * BLOCK_BYTES:
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as fault:
            raise TarDamage(f"{path}: bad header at byte {offset}: {fault}") from fault
        if not 0 <= info.size <= _MAX_MEMBER_BYTES:
            raise TarDamage(f"{path}: bad header at byte {offset}: a size of {info.size} bytes")
        data = file.read(info.size)
        if len(data) < info.size:
            raise TarDamage(
                f"{path}: {info.name!r} at byte {offset} is cut: {len(data)} of {info.size} bytes"
            )
        file.read(-info.size % BLOCK_BYTES)
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            try:
                long_name = _long_name(info.type, data) or long_name
            except ValueError as fault:
                raise TarDamage(f"{path}: bad header at byte {offset}: {fault}") from fault
        elif info.isreg():
            yield Member(long_name or info.name, offset + BLOCK_BYTES, info.size, data)
            long_name = None
        offset += BLOCK_BYTES + info.size + (-info.size % BLOCK_BYTES)


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
