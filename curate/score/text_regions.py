"""Finds rendered text in pictures: boxes, and the share of the image that they cover.

The measure behind "Less is More" (arXiv 2305.05095), which drops images with text regions; its
detector and threshold are not published in what could be read, so ours are named here. Detector:
PP-OCRv6 small, as bundled with rapidocr, at 320 px on the long side. rapidocr's own settings are not
used: they upscale to 736 px on the short side, 12 times slower, and report text on 58 % of photographs
(facts, curation d). The detector also boxes whole salient objects (a dog, a fruit), so boxes that are
too large or too thick to be a line of text are not accepted.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract.columns import field
from curate.score.picture import decode
from curate.stage import KEEP, REASON, RowStage, StageError, decision, error

_USE = "score.text_regions"
_MODEL = "PP-OCRv6_det_small.onnx"
Detector = Callable[[np.ndarray], Any]


@dataclass(frozen=True, kw_only=True)
class TextRegions(RowStage):
    """Writes ``text_area_frac`` and ``text_boxes``; both null where the picture cannot be decoded.

    ``text_area_frac`` is the area of the union of the accepted boxes (rotated as detected, cut at the
    image's edge), so what lies under two boxes counts once. ``text_boxes`` are their upright bounds.

    Options:
        limit_side_len: pictures are scaled down to this long side in px before they are looked at.
        box_threshold: the detector's least confidence in a box, 0 to 1.
        max_box_area_frac: boxes over a larger share of the image are objects, not text.
        max_box_thickness_frac: so are boxes thicker than this share of the image's short side.
    """

    limit_side_len: int = 320  # px; pictures are scaled down to this long side, never up
    box_threshold: float = 0.5  # the detector's confidence; above 0.7 small text is lost
    max_box_area_frac: float = 0.25  # of the image; larger boxes are objects, not text
    max_box_thickness_frac: float = 0.35  # of the image's short side

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([field("text_area_frac"), field("text_boxes"), KEEP, REASON])

    def inputs(self) -> tuple[str, ...]:
        path = _model_path()
        return (path,) if path else ()

    def check(self) -> None:
        if self.limit_side_len < 32:
            raise ValueError(
                f"limit_side_len is {self.limit_side_len}. hint: at least 32, the detector's grid"
            )
        for name in ("box_threshold", "max_box_area_frac", "max_box_thickness_frac"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}. hint: a share, from 0 to 1")
        path = _model_path()
        if not os.path.exists(path):
            raise ValueError(
                f"no text detector at {path or 'rapidocr (not installed)'}. hint: pip install 'clip-pipe[curate]'"
            )

    def open(self) -> Detector:
        """rapidocr's detector alone, on one thread. Raises StageError where its model is not there."""
        path = _model_path()
        if not os.path.exists(path):
            raise StageError(
                f"{_USE}: no text detector at {path!r}. hint: pip install 'clip-pipe[curate]' on this node"
            )
        return _detector(path, self.limit_side_len, self.box_threshold)

    def process(self, batch: pa.Table, state: Detector) -> pa.Table:
        areas: list[float | None] = []
        boxes: list[list[dict[str, float]] | None] = []
        reasons: list[str | None] = []
        for data in batch["image"]:
            area, found, fault = self._measure(data.as_py(), state)
            areas.append(area)
            boxes.append(found)
            reasons.append(None if fault is None else error(_USE, fault))
        schema = self.writes()
        columns = [pa.array(areas, schema.field(0).type), pa.array(boxes, schema.field(1).type)]
        return pa.table([*columns, *decision(reasons)], schema=schema)

    def _measure(
        self, data: bytes | None, detect: Detector
    ) -> tuple[float | None, list[dict[str, float]] | None, str | None]:
        """Area, boxes and the kind of fault, if any, of one encoded picture."""
        if data is None:
            return None, None, "no_image"
        try:
            pixels = decode(data)
        except ValueError:
            return None, None, "decode"
        height_px, width_px = pixels.shape[:2]
        result = detect(np.ascontiguousarray(pixels[:, :, ::-1]))  # rapidocr reads BGR
        if result.boxes is None:
            return 0.0, [], None
        corners = np.asarray(result.boxes, np.float64).reshape(-1, 4, 2)
        accepted = self._accepted(corners, width_px, height_px)
        scores = np.asarray(result.scores, np.float64)[accepted]
        corners = corners[accepted] / (width_px, height_px)
        return union_area(corners), _bounds(corners, scores), None

    def _accepted(self, corners: np.ndarray, width_px: int, height_px: int) -> np.ndarray:
        """Which boxes, shape (boxes, 4 corners, 2) in pixels, can be a line of text."""
        sides_px = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
        width, thickness = sides_px[:, [0, 2]].mean(1), sides_px[:, [1, 3]].mean(1)
        area_frac = width * thickness / (width_px * height_px)
        thick_frac = np.minimum(width, thickness) / min(width_px, height_px)
        return (area_frac <= self.max_box_area_frac) & (thick_frac <= self.max_box_thickness_frac)


def union_area(corners: np.ndarray) -> float:
    """Share of the unit square under any of the quadrilaterals of shape (boxes, 4 corners, 2)."""
    import shapely

    quads = shapely.convex_hull(shapely.multipoints(corners)) if len(corners) else []
    return float(
        shapely.area(shapely.intersection(shapely.union_all(quads), shapely.box(0, 0, 1, 1)))
    )


def _bounds(corners: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """``text_boxes`` of one picture, in reading order."""
    low, high = corners.min(axis=1).clip(0, 1), corners.max(axis=1).clip(0, 1)
    return [
        {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "confidence": score}
        for (x0, y0), (x1, y1), score in zip(low.tolist(), high.tolist(), scores.tolist())
    ]


def _model_path() -> str:
    """The detector that came with rapidocr, found without importing it; empty if it is not installed."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        return ""
    return os.path.join(os.path.dirname(spec.origin), "models", _MODEL)


def _detector(path: str, limit_side_len: int, box_threshold: float) -> Detector:
    import cv2
    import rapidocr
    from rapidocr.ch_ppocr_det import TextDetector
    from rapidocr.utils.parse_parameters import ParseParams

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    cv2.setNumThreads(1)
    settings = ParseParams.load(os.path.join(os.path.dirname(rapidocr.__file__), "config.yaml"))
    det = settings.Det
    det.engine_cfg = settings.EngineConfig[det.engine_type.value]
    det.engine_cfg.intra_op_num_threads = 1
    det.engine_cfg.inter_op_num_threads = 1
    det.model_path = path
    det.limit_side_len = limit_side_len
    det.limit_type = "max"
    det.box_thresh = box_threshold
    return TextDetector(det)
