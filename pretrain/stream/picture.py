"""Encoded bytes to 8-bit RGB: upright, first frame, transparency on white, 16 bits scaled down.

Pillow alone decodes, so that equal bytes give equal pixels on every machine, whatever else is
installed on it.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

MAX_PIXELS_PX = 100_000_000


class BadPicture(Exception):
    """Bytes that do not decode to a picture. ``kind`` is the reason's last word."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


def decode_rgb(data: bytes) -> np.ndarray:
    """Pixels, uint8 of shape (height, width, 3). Raises BadPicture, and nothing else, for bad bytes."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS_PX:
                    raise BadPicture("too_many_pixels", f"{image.width}x{image.height}")
                image.load()
                return np.array(_rgb(image), order="C")
    except BadPicture:
        raise
    except Image.DecompressionBombError as fault:
        raise BadPicture("too_many_pixels", str(fault)) from fault
    # Pillow raises OSError, ValueError, TypeError, IndexError, SyntaxError, struct.error and more.
    except Exception as fault:
        raise BadPicture("not_decodable", f"{type(fault).__name__}: {fault}"[:200]) from fault


def _rgb(image: Any) -> np.ndarray:
    """An opened Pillow image as uint8 (height, width, 3)."""
    from PIL import Image, ImageOps

    upright = image
    ImageOps.exif_transpose(upright, in_place=True)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        grey = np.clip(np.asarray(upright).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        with_alpha = upright.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, with_alpha)
    return np.asarray(upright.convert("RGB"))
