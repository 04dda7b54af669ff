"""Embeds each picture with any open_clip checkpoint: unit vectors, kept as float16.

The preprocessing is open_clip's own for the model (shortest side scaled, middle cut out, mean and
deviation of the model), over pixels decoded as a viewer would show them. A picture whose long side is
over 16 times its short one is cut at the centre first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from curate.score import vectors
from curate.score.open_clip_model import LoadedClip, OpenClipModel
from curate.stage import KEEP, REASON, RowStage, decision, error

_USE = "score.image_embedding"


@dataclass(frozen=True, kw_only=True)
class ImageEmbedding(OpenClipModel, RowStage):  # type: ignore[override]
    """Writes ``column``: fixed_size_list<float16, D>; null where the picture cannot be decoded.

    Options beside those of the model (model, config, checkpoint, pretrained, precision, device):
        column: its name, so that embeddings of two models can stand side by side.
    """

    batch_rows: ClassVar[int] = 64

    column: str = "embedding_image"

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        kind = vectors.column_type(self.spec().embed_dim)
        return pa.schema([pa.field(self.column, kind), KEEP, REASON])

    def check(self) -> None:
        vectors.check_name(self.column)
        super().check()

    def open(self) -> LoadedClip:
        return self.load(_USE)

    def process(self, batch: pa.Table, state: LoadedClip) -> pa.Table:
        found, faults = state.embed_pictures(batch["image"].to_pylist())
        schema = self.writes()
        column = vectors.to_column(found, schema.field(0).type.list_size)
        reasons = [None if fault is None else error(_USE, fault) for fault in faults]
        return pa.table([column, *decision(reasons)], schema=schema)
