"""Scores how well picture and caption agree: their cosine under any open_clip checkpoint.

CLIPScore (arXiv 2104.08718) without its factor 2.5 and its cut at zero: DataComp's and LAION's CLIP
filtering compare this plain cosine, in [-1, 1]. Captions are cut off as open_clip's tokenizer does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from curate.contract.columns import field
from curate.score import vectors
from curate.score.open_clip_model import LoadedClip, OpenClipModel
from curate.stage import KEEP, REASON, RowStage, decision, error

_USE = "score.clip_score"


@dataclass(frozen=True, kw_only=True)
class ClipScore(OpenClipModel, RowStage):  # type: ignore[override]
    """Writes ``clip_score``; null where the picture cannot be decoded.

    Options beside those of the model (model, config, checkpoint, pretrained, precision, device):
        embedding: a column of picture embeddings by the same model, read in place of the pictures.
            Being float16, it moves the score by less than 0.001.
    """

    batch_rows: ClassVar[int] = 64

    embedding: str = ""

    def reads(self) -> tuple[str, ...]:
        return (self.embedding or "image", "caption")

    def writes(self) -> pa.Schema:
        return pa.schema([field("clip_score"), KEEP, REASON])

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        if self.embedding:
            vectors.check_column(self.embedding, types[self.embedding], self.spec().embed_dim)

    def open(self) -> LoadedClip:
        return self.load(_USE)

    def process(self, batch: pa.Table, state: LoadedClip) -> pa.Table:
        pictures, faults = self._pictures(batch, state)
        captions = batch["caption"].to_pylist()
        faults = [
            fault or ("no_caption" if caption is None else None)
            for fault, caption in zip(faults, captions, strict=True)
        ]
        good = [row for row, fault in enumerate(faults) if fault is None]
        texts = state.embed_captions([captions[row] for row in good])
        scores = np.full(len(batch), np.nan, np.float32)
        scores[good] = np.multiply(pictures[good], texts, dtype=np.float64).sum(axis=1)
        reasons = [
            error(_USE, fault or "not_finite") if fault or np.isnan(score) else None
            for fault, score in zip(faults, scores)
        ]
        column = pa.array(np.clip(scores, -1, 1), mask=np.isnan(scores))
        return pa.table([column, *decision(reasons)], schema=self.writes())

    def _pictures(self, batch: pa.Table, state: LoadedClip) -> tuple[np.ndarray, list[str | None]]:
        """Unit vectors of the pictures, float32 (rows, D), and each one's kind of fault, if any."""
        if not self.embedding:
            return state.embed_pictures(batch["image"].to_pylist())
        stored, usable = vectors.from_column(batch[self.embedding])
        return stored.astype(np.float32), [None if one else "no_embedding" for one in usable]
