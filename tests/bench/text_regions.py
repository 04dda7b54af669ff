"""Measures score.text_regions on pictures with known text: pictures per CPU-second, recall, false alarms.

    python tests/bench/text_regions.py [--threshold 0.01] [--limit-side-len 320]

A picture counts as flagged if its text_area_frac is above the threshold. Needs the shared real data.
"""

from __future__ import annotations

import argparse
import json
import os
import tarfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.score.text_regions import TextRegions

SHARED = Path(
    os.environ.get("CLIP_PIPE_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)


def pictures(name: str) -> tuple[list[str], list[bytes], list[dict[str, Any]]]:
    """Names and bytes of the pictures in a tar, and its boxes.json if there is one."""
    with tarfile.open(SHARED / name) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    boxes = [json.loads(data) for path, data in files.items() if path.endswith("boxes.json")]
    shown = sorted(path for path in files if path.lower().endswith((".jpg", ".jpeg", ".png")))
    return shown, [files[path] for path in shown], boxes[0] if boxes else []


def true_area_frac(entry: dict[str, Any]) -> float:
    import shapely

    quads = [
        shapely.convex_hull(shapely.multipoints(region["polygon"])) for region in entry["regions"]
    ]
    return (
        float(shapely.area(shapely.union_all(quads)) / (entry["width"] * entry["height"]))
        if quads
        else 0.0
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threshold", type=float, default=0.01)
    parser.add_argument("--limit-side-len", type=int, default=320)
    options = parser.parse_args()
    if not SHARED.exists():
        raise SystemExit(f"no data at {SHARED}. hint: set CLIP_PIPE_SHARED_DATA")
    stage = TextRegions(limit_side_len=options.limit_side_len)
    detector = stage.open()
    print(
        f"{'set':32} {'pictures':>8} {'per CPU-s':>9} {'flagged':>8} {'true area':>9} {'measured':>9}"
    )
    for name in (
        "textfree-photos.tar",
        "scenetext-overlay-synth.tar",
        "scenetext-icdar2015-120.tar",
    ):
        names, data, boxes = pictures(name)
        entries = {entry["file"]: entry for entry in boxes}
        began_s = time.process_time()
        table = stage.process(pa.table({"image": pa.array(data, pa.binary())}), detector)
        rate = len(data) / (time.process_time() - began_s)
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for path, area in zip(names, table["text_area_frac"].to_pylist()):
            entry = entries.get(path, {"regions": [], "width": 1, "height": 1})
            groups[entry.get("style", "")].append((area, true_area_frac(entry)))
        for style, pairs in groups.items():
            measured, true = np.array(pairs).T
            label = f"{name.removesuffix('.tar')} {style}".strip()
            print(
                f"{label:32} {len(pairs):8} {rate:9.1f} {np.mean(measured > options.threshold):8.1%} {true.mean():9.2%} {measured.mean():9.2%}"
            )


if __name__ == "__main__":
    main()
