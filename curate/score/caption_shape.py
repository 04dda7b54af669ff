"""Measures the form of each caption: characters, words, repetition, and whether it is but a file's name.

Lengths are those of DataComp's basic filter (arXiv 2304.14108, appendix: more than 2 words by white
space and more than 5 characters). Repetition and file names are the common complaints about alt-texts;
no paper's numbers stand behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract.columns import field
from curate.stage import RowStage

_ENDINGS = (
    "jpe?g|jfif|png|gif|webp|avif|bmp|tiff?|svg|heic|heif|jp2|psd|eps|ico|raw|cr2|nef|arw|dng"
)
_CAMERAS = "_?img|_?dsc|dscn|dscf|pict|pxl|mvi|gopr|dji|cimg|hpim|imag"
_NAMELESS = (
    "image|img|photo|pic|picture|foto|bild|imagen|untitled|unnamed|unbenannt|sans[ _-]titre|scan|file"
    "|thumb|thumbnail|slide|screenshot|screen shot|screen|capture|download|attachment"
)
# The whole trimmed text must match one of these (RE2, case does not count).
_FILE_NAMES = (
    rf"\S+\.({_ENDINGS})",  # holiday.jpg, a/b-c_1.PNG
    rf"[^.!?,;:]*[\w)]\.({_ENDINGS})",  # red dress front (2).jpg: no sentence, it ends like a file
    rf"({_CAMERAS})[ _-]?\d{{3,}}([ _-]?\w{{0,8}}|[ _-]?\(\d+\))",  # IMG_1234, DSC0001, IMG 1234 (2)
    r"(p|wp|sam)_?\d{4,}([_-]\w{1,8})*",  # P1010234, WP_20140312
    rf"({_NAMELESS})[ _-]*\(?\d+\)?([ _-]\d+)*",  # image001, untitled-3, Screenshot (12)
    r"untitled|unnamed|thumbnail|screenshot",
    r"\d{6,}([_-]\w+)*",  # 20190312_101500, 4589213-large; a year or a date is none
    r"(https?://|www\.)\S+",
    r"[0-9a-f]{16,}",  # md5, sha256, camera hashes
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    r"[^\s_]+(_+[^\s_]+)+",  # a single word joined by underscores: product_front_2
)
_PATTERN = f"(?i)^({'|'.join(_FILE_NAMES)})$"
_SLUG = r"^[\pL\d]+(-+[\pL\d]+){3,}$"  # a single word with three hyphens, such as state-of-the-art
_LONG_SLUG = r"^[\pL\d]+(-+[\pL\d]+){4,}$"


@dataclass(frozen=True, kw_only=True)
class CaptionShape(RowStage):
    """Writes four columns about the alt-text; all are null where there is no alt-text.

    ``caption_chars`` are code points and ``caption_words`` the pieces between white space, as Python's
    ``len`` and ``str.split`` count. ``caption_repetition_frac`` is 1 - distinct words / words, words
    lower-cased with their punctuation; null without a word. ``caption_is_file_name`` is true only if
    all of the text looks like a name that a camera, a program or a web address gives: a text that only
    mentions one ("photo.jpg of a dog") is a caption.
    """

    batch_rows: ClassVar[int] = 8192

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        names = (
            "caption_chars",
            "caption_words",
            "caption_repetition_frac",
            "caption_is_file_name",
        )
        return pa.schema([field(name) for name in names])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        captions = batch["caption"].combine_chunks()
        words, repetition = _words(captions)
        columns = [pc.utf8_length(captions), words, repetition, is_file_name(captions)]
        return pa.table(
            [column.cast(one.type) for column, one in zip(columns, self.writes(), strict=True)],
            schema=self.writes(),
        )


def is_file_name(captions: pa.Array) -> pa.Array:
    """Whether each text as a whole looks like a file's name or a web address; null for null."""
    trimmed = pc.utf8_trim_whitespace(captions)
    letters, digits, slug, long_slug, name = (
        pc.match_substring_regex(trimmed, pattern)
        for pattern in (r"\pL", r"\d", _SLUG, _LONG_SLUG, _PATTERN)
    )
    # Three hyphens may be a word and need a digit; digits alone may be a telephone number.
    slug = pc.and_(letters, pc.or_(long_slug, pc.and_(slug, digits)))
    return pc.or_(name, slug)


def _words(captions: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Number of words of each text, and the share of them that repeat an earlier one."""
    split = pc.utf8_split_whitespace(pc.utf8_lower(pc.utf8_trim_whitespace(captions)))
    words, rows = pc.list_flatten(split), pc.list_parent_indices(split)
    rows = np.asarray(rows)[np.asarray(pc.not_equal(words, ""))]
    codes = words.filter(pc.not_equal(words, "")).dictionary_encode()
    count = np.bincount(rows, minlength=len(captions))
    keys = rows.astype(np.int64) * max(len(codes.dictionary), 1) + np.asarray(codes.indices)
    distinct = np.bincount(
        np.unique(keys) // max(len(codes.dictionary), 1), minlength=len(captions)
    )
    missing = np.asarray(captions.is_null())
    repeated = np.zeros(len(captions), np.float64)
    np.divide(count - distinct, count, out=repeated, where=count > 0)
    return (
        pa.array(count, pa.int32(), mask=missing),
        pa.array(repeated.astype(np.float32), pa.float32(), mask=missing | (count == 0)),
    )
