"""What a picture's header announces, read from a few hundred bytes: format, size, orientation, frames.

JPEG, PNG and WebP are most of the web, so theirs are read here and cost microseconds; other formats
are Pillow's. A header that does not read as its standard says is left to Pillow too (None).
Orientation is EXIF's, and as in Pillow XMP's where EXIF has none.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([1-8])")
_ORIENTATION_TAG = 0x0112
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PNG_ODD = frozenset({b"eXIf", b"acTL"})
_PNG_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_MOST_SEGMENTS = 10_000
_MOST_JUNK_BYTES = 16
_LEAST_BLOCK_BYTES = 64  # on average, of what a GIF's writer fills as far as it can
_MOST_BLOCKS = 100_000  # of a GIF or a WebP, so that a body of nothing but blocks takes no second
# JPEG markers that stand alone: parsers disagree on what follows them before the first scan, and two that
# disagree see two sizes. So do two frame headers.
_NO_SEGMENT = frozenset({0x00, 0x01, 0xD8, 0xD9, *range(0xD0, 0xD8)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKER = re.compile(
    rb"\xff[^\x00\xd0-\xd7\xff]"
)  # in scan data: neither stuffing nor restart


@dataclass(frozen=True, kw_only=True)
class Header:
    """``width`` and ``height`` are as stored, in pixels; orientation is EXIF's, 1 to 8.

    ``plain`` says that cv2 shows the picture as a viewer would, apart from its orientation.
    """

    format: str  # Pillow's name
    width: int
    height: int
    orientation: int = 1
    channels: int = 3
    plain: bool = False
    progressive: bool = False
    step: int = 0  # JPEG: the first brightness step of the quantiser, 6 at quality 75; 0 unknown

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as seen."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


def header(data: bytes) -> Header | None:
    """The header of a JPEG, PNG or WebP, or None where Pillow is to be asked."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(_PNG_MAGIC):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):
        return None
    return None


def _jpeg(data: bytes) -> Header | None:
    """ITU-T T.81 markers up to the first scan; baseline, extended and progressive Huffman, 8 bits."""
    at, frame, exif, xmp, step = 2, None, None, None, 0
    for _ in range(_MOST_SEGMENTS):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:
            break
        if length < 2 or marker in _NO_SEGMENT:
            return None
        if marker in _FRAMES:
            if frame is not None or marker > 0xC2:
                return None
            frame = (marker, *struct.unpack_from(">BHHB", data, at + 4))
        elif marker == 0xDB and data[at + 4] == 0:
            step = data[at + 6]
        elif marker == 0xE1:
            body = data[at + 4 : at + 2 + length]
            if exif is None and body.startswith(_EXIF):
                exif = body[len(_EXIF) :]
            elif xmp is None and body.startswith(_XMP):
                xmp = body
        at += 2 + length
    if frame is None:
        return None
    marker, bits, height, width, channels = frame
    if bits != 8 or not width or not height or channels not in (1, 3):
        return None
    return Header(
        format="JPEG", width=width, height=height, channels=channels, plain=True,
        orientation=_orientation(exif, xmp), progressive=marker == 0xC2, step=step,
    )  # fmt: skip


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    found = exif_orientation(exif) if exif else None
    if found is None and xmp is not None:
        match = _XMP_ORIENTATION.search(xmp)
        found = int(match[1]) if match else None
    return found if found is not None and 1 <= found <= 8 else 1


def exif_orientation(tiff: bytes) -> int | None:
    """The orientation tag of a TIFF block's first directory, None where it is absent or unreadable."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION_TAG:
                form = {1: "B", 3: "H", 4: "I"}.get(kind)
                if form is None or count != 1:
                    return None
                return int(struct.unpack_from(order + form, tiff, entry + 8)[0])
    except struct.error:
        return None
    return None


def _png(data: bytes) -> Header | None:
    """Chunks up to the first pixels. Deep, turned, animated and hidden-alpha ones are not plain."""
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR" or colour not in _PNG_CHANNELS or not width or not height:
        return None
    plain, at = bits <= 8, 33
    for _ in range(_MOST_SEGMENTS):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        if name in (b"IDAT", b"IEND"):
            break
        hidden_alpha = name == b"tRNS" and colour != 3
        turned = name in _PNG_TEXT and data.startswith(
            (b"Raw profile type exif", b"XML:com"), at + 8
        )
        plain = plain and not (hidden_alpha or turned or name in _PNG_ODD)
        at += 12 + length
    return Header(
        format="PNG", width=width, height=height, channels=_PNG_CHANNELS[colour], plain=plain
    )


def _webp(data: bytes) -> Header | None:
    """RFC 9649. Animated ones and those with metadata are not plain."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(format="WEBP", width=width & 0x3FFF, height=height & 0x3FFF, plain=True)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return Header(
            format="WEBP",
            width=width,
            height=height,
            channels=4 if bits >> 28 & 1 else 3,
            plain=True,
        )
    if kind == b"VP8X":
        flags = data[20]
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        return Header(
            format="WEBP", width=width, height=height, channels=4 if flags & 0x10 else 3,
            plain=not flags & (0x02 | 0x04 | 0x08),
        )  # fmt: skip
    return None


def frames(data: bytes, most: int) -> int:
    """Frames of an animated GIF, PNG or WebP, pages of a TIFF; counting stops past ``most``. Else 1.

    More blocks than any picture has are more than ``most`` too.
    """
    try:
        if data.startswith(b"GIF8"):
            return _gif_frames(data, most)
        if data.startswith(_PNG_MAGIC):
            return _png_frames(data)
        if data[8:12] == b"WEBP":
            return max(1, _webp_frames(data, most))
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff_pages(data, most)
    except (struct.error, IndexError):
        return 1  # cut off: what is there is judged by the decoder
    return 1


def _png_frames(data: bytes) -> int:
    """What the acTL chunk says, which must stand before the first pixels."""
    at = 8
    for _ in range(_MOST_SEGMENTS):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        if name == b"acTL":
            return max(1, int(struct.unpack_from(">I", data, at + 8)[0]))
        if name in (b"IDAT", b"IEND"):
            return 1
        at += 12 + length
    return 1


def _gif_frames(data: bytes, most: int) -> int:
    """GIF89a blocks, the pixels skipped over."""
    found, blocks, at = 0, 0, 13 + _gif_colours(data[10])
    while found <= most:
        block = data[at]
        if block == 0x2C:
            found += 1
            at += 11 + _gif_colours(data[at + 9])
        elif block == 0x21:
            at += 2
        else:
            break
        while data[at]:
            at += data[at] + 1
            blocks += 1
        at += 1
        blocks += 1
        if blocks > _MOST_BLOCKS + len(data) // _LEAST_BLOCK_BYTES:
            return most + 1
    return max(found, 1)


def _gif_colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp_frames(data: bytes, most: int) -> int:
    found, blocks, at = 0, 0, 12
    while at + 8 <= len(data) and found <= most:
        found += data.startswith(b"ANMF", at)
        (length,) = struct.unpack_from("<I", data, at + 4)
        at += 8 + length + (length & 1)
        blocks += 1
        if blocks > _MOST_BLOCKS:
            return most + 1
    return found


def _tiff_pages(data: bytes, most: int) -> int:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    seen: set[int] = set()
    while at and at not in seen and len(seen) <= most:
        (entries,) = struct.unpack_from(f"{order}H", data, at)
        seen.add(at)
        (at,) = struct.unpack_from(f"{order}I", data, at + 2 + 12 * entries)
    return max(len(seen), 1)


def ends_well(data: bytes) -> bool:
    """Whether a JPEG, PNG or WebP has its end marker, and no more than a few bytes after it."""
    try:
        end = _jpeg_end(data) if data.startswith(b"\xff\xd8") else _chunks_end(data)
    except (struct.error, IndexError):
        return False
    return end is not None and len(data) - _MOST_JUNK_BYTES <= end <= len(data)


def _jpeg_end(data: bytes) -> int | None:
    """Behind the end marker of the first picture: thumbnails and what is appended have their own."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + length
        if marker == 0xDA:
            found = _JPEG_MARKER.search(data, at)
            if found is None:
                return None
            at = found.start()
    return None


def _chunks_end(data: bytes) -> int | None:
    if data.startswith(b"RIFF"):
        return 8 + int(struct.unpack_from("<I", data, 4)[0])
    at = 8
    while data.startswith(_PNG_MAGIC):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        at += 12 + length
        if name == b"IEND":
            return at
    return None
