"""Measures the size of each picture: its short side, and its long side over its short one.

DataComp's basic filter (arXiv 2304.14108) keeps a short side of 200 px or more and a ratio of at most 3,
both of the picture as fetched. A turn by 90 degrees (EXIF) changes neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.contract.columns import field
from curate.score.picture import opened
from curate.stage import KEEP, REASON, RowStage, Stage, decision, error

_USE = "score.picture_shape"
_MOST_PX = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class PictureShape(RowStage):
    """Writes ``min_side_px`` and ``aspect_ratio``, 1 or more; null where the size is not known.

    Options:
        of: ``fetched`` takes the columns ``original_width`` and ``original_height`` that
            ``download.fetch`` writes and looks at no picture. ``stored`` reads the header of the newest
            picture: for sources that bring pictures (``folder``, ``image_tars``). Below
            ``download.fetch``, ``stored`` would measure what was made of the picture, ``image_size``
            and not the original. A header that can't be read is ``error.score.picture_shape.decode``.
    """

    of: Literal["fetched", "stored"] = "fetched"

    def reads(self) -> tuple[str, ...]:
        return ("original_width", "original_height") if self.of == "fetched" else ("image",)

    def writes(self) -> pa.Schema:
        measured = [field("min_side_px"), field("aspect_ratio")]
        return pa.schema(measured if self.of == "fetched" else [*measured, KEEP, REASON])

    def check_above(self, above: Sequence[Stage]) -> None:
        names = {name for stage in above for name in stage.writes().names}
        if self.of == "fetched" and "image" in names and not names.issuperset(self.reads()):
            raise ValueError(
                'of = "fetched" reads original_width and original_height, and the source brings pictures without them. hint: of = "stored"'
            )

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        for name in self.reads() if self.of == "fetched" else ():
            if not _is_number(types[name]):
                raise ValueError(
                    f"column {name!r} is {types[name]}, not a number. hint: sizes are pixels as whole numbers; convert the column, or set of = 'stored' where the source brings pictures"
                )

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        decided: list[pa.Array] = []
        if self.of == "fetched":
            sides = [_numbers(batch[name]) for name in self.reads()]
        else:
            headers = [_header(data) for data in batch["image"].to_pylist()]
            sides = [np.array([header[n] for header in headers], np.int64) for n in (0, 1)]
            decided = decision(header[2] for header in headers)
        short, long = np.minimum(*sides), np.maximum(*sides)
        unknown = short < 1
        ratio = long / np.where(unknown, 1, short)
        measured = [
            pa.array(short.astype(np.int32), pa.int32(), mask=unknown),
            pa.array(ratio.astype(np.float32), pa.float32(), mask=unknown),
        ]
        return pa.table([*measured, *decided], schema=self.writes())


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column as whole numbers of pixels, int64, 0 where there is none: null, NaN, a fraction, too large."""
    if not _is_number(column.type):
        return np.zeros(len(column), np.int64)
    found = column.cast(
        pa.float64(), safe=False
    ).to_numpy()  # exact up to 2^53, and no more is asked
    whole = (found >= 1) & (found <= _MOST_PX) & (found == np.floor(found))
    return np.where(whole, found, 0).astype(np.int64)


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )


def _header(data: bytes | None) -> tuple[int, int, str | None]:
    """Width and height in px by the picture's header, or zeros and the reason why not."""
    if data is None:
        return 0, 0, error(_USE, "no_image")
    try:
        with opened(data) as image:
            return image.width, image.height, None
    except ValueError:
        return 0, 0, error(_USE, "decode")
