"""Every standard column: name, Arrow type, unit and meaning. One word per thing.

Names and types of downloaded pictures (url, width, height, original_width, original_height,
sha256, status, error_message) are img2dataset's and are not renamed.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

CAPTIONS_TYPE = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("writer", pa.string()),
            ("prompt_sha", pa.string()),
            ("seed", pa.int64()),
        ]
    )
)
TEXT_BOXES_TYPE = pa.list_(
    pa.struct(
        [
            ("x0", pa.float32()),
            ("y0", pa.float32()),
            ("x1", pa.float32()),
            ("y1", pa.float32()),
            ("confidence", pa.float32()),
        ]
    )
)


@dataclass(frozen=True)
class Column:
    """One standard column."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""

    @property
    def field(self) -> pa.Field:
        return pa.field(self.name, self.type)


COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("uid", pa.string(), "sha256(url NUL caption), first 32 hex; a row's name for life"),
        Column("url", pa.string(), "where the picture is"),
        Column("caption", pa.string(), "the alt-text as found; never overwritten"),
        Column("crawl_date", pa.date32(), "when the pair was seen on the web"),
        Column("image", pa.binary(), "the newest encoded picture; kept in tars, never in parquet"),
        Column("status", pa.string(), "img2dataset: success, failed_to_download, failed_to_resize"),
        Column("error_message", pa.string(), "img2dataset: why it failed, in words"),
        Column("width", pa.int32(), "of the picture as stored", "px"),
        Column("height", pa.int32(), "of the picture as stored", "px"),
        Column("original_width", pa.int32(), "of the picture as fetched", "px"),
        Column("original_height", pa.int32(), "of the picture as fetched", "px"),
        Column("sha256", pa.string(), "of the bytes as fetched, hex"),
        Column("exif", pa.string(), "EXIF tags of the picture as fetched, a JSON object of text"),
        Column("captions", CAPTIONS_TYPE, "added captions with their writer; append-only"),
        Column(
            "rewrite_reason", pa.string(), "why fewer rewrites than asked were kept; null if none"
        ),
        Column("entries", pa.list_(pa.int32()), "MetaCLIP's matched entry ids, ascending"),
        Column(
            "text_area_frac", pa.float32(), "area under accepted text boxes", "share of the image"
        ),
        Column(
            "text_boxes", TEXT_BOXES_TYPE, "accepted text boxes", "fractions of width and height"
        ),
        Column("clip_score", pa.float32(), "cosine of image and caption, in [-1, 1]"),
        Column(
            "aesthetic_score", pa.float32(), "of a head on picture embeddings", "the head's own"
        ),
        Column("language", pa.string(), "ISO 639-1 code of the caption's language (639-3 if none)"),
        Column("language_confidence", pa.float32(), "of the detector, in [0, 1]"),
        Column("caption_chars", pa.int32(), "length of the alt-text", "code points"),
        Column("caption_words", pa.int32(), "length of the alt-text", "words between spaces"),
        Column(
            "caption_repetition_frac",
            pa.float32(),
            "repeated words",
            "share of the alt-text's words",
        ),
        Column("caption_is_file_name", pa.bool_(), "whether the alt-text looks like a file's name"),
        Column("min_side_px", pa.int32(), "short side of the picture as fetched", "px"),
        Column("aspect_ratio", pa.float32(), "long side over short side, as fetched; 1 or more"),
        Column("phash", pa.binary(), "perceptual hash of the picture, most significant bit first"),
        Column("clusters", pa.list_(pa.int32()), "nearest k-means centroids, the nearest first"),
        Column("overlap", pa.string(), "the item of an evaluation set that a row repeats, or null"),
        Column("keep", pa.bool_(), "in a filter's own sidecar; a row survives if all keep"),
        Column(
            "reason", pa.dictionary(pa.int32(), pa.string()), "why a row was refused; null if kept"
        ),
    )
}

ROW_FIELDS = [COLUMNS[name].field for name in ("uid", "url", "caption")]
LEDGER_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("stage", pa.string()),
    ]
)


def field(name: str) -> pa.Field:
    """The standard Arrow field of a column."""
    return COLUMNS[name].field
