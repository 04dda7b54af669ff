"""A picture of any size as a small WebP inside a `data:` URI, so that the report needs no file."""

from __future__ import annotations

import base64
import io
import warnings

SIDE_PX = 144
_QUALITY = 70
_MAX_PIXELS = 64_000_000  # beyond it a picture is not decoded: a thumbnail is not worth 200 MB


def data_uri(image: bytes | None, side_px: int = SIDE_PX) -> str | None:
    """The picture's `data:image/webp` URI; None where there is no picture that can be decoded.

    Transparent parts become white, as everywhere in clip-pipe.
    """
    if image is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of broken EXIF data and the like: nobody can act on it
            data = _webp(image, side_px)
    except (
        Exception
    ):  # Pillow raises OSError, ValueError, SyntaxError, struct.error ... for bad bytes
        return None  # the page says so in the picture's place
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def _webp(data: bytes, side_px: int) -> bytes:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} px")
        image.draft("RGB", (2 * side_px, 2 * side_px))
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            upright = Image.new("RGBA", rgba.size, "white")
            upright.alpha_composite(rgba)
        small = upright.convert("RGB")
        small.thumbnail((side_px, side_px), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=_QUALITY, method=4)
    return out.getvalue()
