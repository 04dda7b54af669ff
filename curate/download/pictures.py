"""One body to one outcome: checked, decoded, resized and encoded as img2dataset does, faster or exactly.

``quality = "exact"`` gives the pixels, and so the bytes, of img2dataset 1.47's resizer. ``"fast"``
decodes a JPEG that ends smaller at reduced scale and lets cheap filters do the rest; on web
photographs to 256 px it is within 32 dB of exact at the 5th percentile, 39 dB on average. Both differ
from img2dataset where its picture is not what a viewer shows: EXIF orientation is applied, 16-bit
samples are scaled, transparent greys lie on white, and limits hold before anything is decoded.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from curate.download import pixels, resize
from curate.download.header import Header, ends_well
from curate.download.outcomes import Outcome, Refused

_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MOST_RESULT_PX = 50_000_000
_MOST_SIDE_PX = {"jpg": 65_500, "webp": 16_383, "png": 1_000_000}


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """download.fetch's options of those names; ``hash_name`` is "", md5, sha256 or sha512."""

    image_size: int = 256
    resize_mode: str = "keep_ratio"
    resize_only_if_bigger: bool = False
    upscale_interpolation: str = "lanczos"
    downscale_interpolation: str = "area"
    encode_format: str = "jpg"
    encode_quality: int = 95
    skip_reencode: bool = False
    disable_all_reencoding: bool = False
    min_image_size: int = 0
    max_image_area: float = math.inf
    max_aspect_ratio: float = math.inf
    max_frames: int = 1000
    extract_exif: bool = False
    hash_name: str = ""
    quality: str = "fast"


@dataclass
class Spent:
    """CPU seconds of this thread."""

    decode_s: float = 0.0
    resize_s: float = 0.0
    encode_s: float = 0.0


def outcome(body: bytes, options: PictureOptions, expected_hash: str | None = None) -> Outcome:
    """What becomes of a body. A pure function; never raises for what a body holds."""
    return measured(body, options, expected_hash, Spent())


def measured(
    body: bytes, options: PictureOptions, expected_hash: str | None, spent: Spent
) -> Outcome:
    """``outcome``, adding to ``spent`` what it cost."""
    sha256 = hashlib.sha256(body).hexdigest()
    try:
        _check_hash(body, options.hash_name, expected_hash, sha256)
        found = _picture(body, options, spent)
        exif = _exif(body) if options.extract_exif else None
        return replace(found, sha256=sha256, wire_bytes=len(body), exif=exif)
    except Refused as fault:
        kind, words = fault.kind, str(fault)
    except MemoryError:
        kind, words = "decode.crashed", "not enough memory to decode it"
    except Exception as fault:  # decoders raise nearly anything on damaged data
        kind, words = "decode", f"{type(fault).__name__}: {fault}"
    return Outcome(kind=kind, error_message=words[:500], sha256=sha256, wire_bytes=len(body))


def _check_hash(body: bytes, name: str, expected: str | None, sha256: str) -> None:
    if not name or expected is None:
        return
    found = sha256 if name == "sha256" else hashlib.new(name, body).hexdigest()
    if found != expected.strip().lower():
        raise Refused("hash", f"{name} is {found}, expected {expected.strip().lower()[:128]}")


def _picture(body: bytes, options: PictureOptions, spent: Spent) -> Outcome:
    """A success, but for what is known of the body. Raises Refused, MemoryError."""
    began_s = time.thread_time()
    bounds = _bounds(options)
    head = pixels.announced(body, bounds)
    size = head.upright
    wanted = _wanted(size, options)
    keeps = _may_keep(body, head, wanted, options)
    quick = options.quality == "fast" and head.format == "JPEG" and head.plain
    by = _reduction(head, wanted) if quick and not keeps else 1
    found = pixels.decoded(body, head, by)
    if by == 1:
        size = _seen(found)
        if size != head.upright:  # an icon, a turned AVIF
            pixels.check(size, bounds)
            wanted = _wanted(size, options)
    decoded_s = time.thread_time()
    spent.decode_s += decoded_s - began_s
    if keeps and found.as_stored:
        image, final = body, size
    else:
        shown = _shown(found, wanted, options, quick)
        resized_s = time.thread_time()
        spent.resize_s += resized_s - decoded_s
        image = _encoded(shown, options)
        spent.encode_s += time.thread_time() - resized_s
        final = (shown.shape[1], shown.shape[0])
    return Outcome(
        image=image,
        width=final[0],
        height=final[1],
        original_width=size[0],
        original_height=size[1],
    )


def _bounds(options: PictureOptions) -> pixels.Bounds:
    return pixels.Bounds(
        min_image_size=options.min_image_size,
        max_image_area=options.max_image_area,
        max_aspect_ratio=options.max_aspect_ratio,
        max_frames=options.max_frames,
    )


def _seen(found: pixels.Decoded) -> tuple[int, int]:
    height, width = found.pixels.shape[:2]
    return (height, width) if found.orientation >= 5 else (width, height)


def _wanted(size: tuple[int, int], options: PictureOptions) -> resize.Target | None:
    """The target of an upright ``size``. Raises Refused where the result would be too large."""
    if options.disable_all_reencoding:
        return None
    wanted = resize.target(
        size, options.image_size, options.resize_mode, options.resize_only_if_bigger
    )
    width, height = wanted.size if wanted else size
    if (
        width * height > max(_MOST_RESULT_PX, size[0] * size[1])
        or max(width, height) > _MOST_SIDE_PX[options.encode_format]
    ):
        words = f"{size[0]} x {size[1]} px, would become {width} x {height}"
        raise Refused("too_large.aspect", words)
    return wanted


def _may_keep(
    body: bytes, head: Header, wanted: resize.Target | None, options: PictureOptions
) -> bool:
    """Whether the body itself is the result, provided that it decodes whole."""
    if not (options.skip_reencode or options.disable_all_reencoding):
        return False
    own_size = wanted is None or wanted.final == head.upright
    own_format = options.disable_all_reencoding or head.format == _FORMATS[options.encode_format]
    return own_size and own_format and head.plain and head.orientation == 1 and ends_well(body)


def _reduction(head: Header, wanted: resize.Target | None) -> int:
    """By how much the JPEG may be decoded smaller."""
    return 1 if wanted is None else resize.reduction(head.upright, wanted)


def _shown(
    found: pixels.Decoded, wanted: resize.Target | None, options: PictureOptions, quick: bool
) -> np.ndarray:
    """Scaled as stored, since that is less to turn; then upright; then cut or bordered."""
    if wanted is None:
        return pixels.upright(found.pixels, found.orientation)
    name = options.downscale_interpolation if wanted.shrinks else options.upscale_interpolation
    size = wanted.size[::-1] if found.orientation >= 5 else wanted.size
    if quick and wanted.shrinks and name.lower() == "area":
        small = resize.quickly_shrunk(found.pixels, size)
    else:
        small = resize.scaled(found.pixels, size, resize.interpolation(name))
    return resize.framed(pixels.upright(small, found.orientation), wanted.final)


def _encoded(shown: np.ndarray, options: PictureOptions) -> bytes:
    import cv2

    flags = {
        "jpg": cv2.IMWRITE_JPEG_QUALITY,
        "png": cv2.IMWRITE_PNG_COMPRESSION,
        "webp": cv2.IMWRITE_WEBP_QUALITY,
    }
    parameters = [flags[options.encode_format], options.encode_quality]
    return cv2.imencode(f".{options.encode_format}", shown, parameters)[1].tobytes()


def _exif(body: bytes) -> str | None:
    """img2dataset's ``exif``: a JSON object of exifread's tags as text; None where it can't be read."""
    import exifread

    try:
        tags = exifread.process_file(io.BytesIO(body), details=False)
        return json.dumps(
            {name: str(value).strip() for name, value in tags.items() if value is not None}
        )
    except Exception:
        return None
