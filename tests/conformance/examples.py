"""What the conformance tests give a component: a table with every standard column, and required options.

A component whose options all have defaults needs nothing here.
"""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract.columns import COLUMNS
from curate.contract.draw import pair_uid
from curate.score import vectors
from curate.stage import REASON
from tests.tiny import models

ROWS = 13
WORDS = (
    "a red circle on sand",
    "two blue squares",
    "photo of a dog",
    "IMG_1234.jpg",
    "green star left of a red circle",
)


def picture(number: int) -> bytes:
    """A small JPEG with a few flat shapes."""
    from PIL import Image

    rng = np.random.default_rng(number)
    image = np.full((96, 128, 3), rng.integers(0, 255, 3), np.uint8)
    x, y = rng.integers(0, 60, 2)
    image[y : y + 30, x : x + 40] = rng.integers(0, 255, 3)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


def embeddings(dim: int) -> np.ndarray:
    """ROWS unit vectors of ``dim`` numbers in pairs of near copies; the last row has none."""
    made = np.random.default_rng(dim).normal(size=(7, dim)).repeat(2, axis=0)[:ROWS]
    made += np.random.default_rng(0).normal(size=made.shape) * 0.01
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    made[-1] = np.nan
    return made


def table(base_url: str, image_paths: list[str]) -> pa.Table:
    """ROWS rows with every standard column and the virtual ones; urls are served by the demo world."""
    captions = [f"{WORDS[n % len(WORDS)]} {n % 3 if n % 2 else ''}".strip() for n in range(ROWS)]
    urls = [f"{base_url}{image_paths[n % len(image_paths)]}" for n in range(ROWS)]
    pictures = [picture(n % 7) for n in range(ROWS)]
    values: dict[str, Any] = {
        "uid": [
            pair_uid(url, f"{caption}{n}") for n, (url, caption) in enumerate(zip(urls, captions))
        ],
        "url": urls,
        "caption": captions,
        "image": pictures,
        "sha256": [f"{n % 7:064x}" for n in range(ROWS)],
        "entries": [[n % 3, 3 + n % 2] if n % 5 else [] for n in range(ROWS)],
        "text_area_frac": [n / ROWS for n in range(ROWS)],
        "phash": [bytes([n % 4] * 31 + [n % 3]) if n % 6 else None for n in range(ROWS)],
        "crawl_date": [datetime.date(2021, 1, 1 + n) if n % 6 else None for n in range(ROWS)],
        "original_width": [256] * ROWS,
        "original_height": [192] * ROWS,
        "width": [128] * ROWS,
        "height": [96] * ROWS,
        "clusters": [[n % 2, 2] if n % 6 else None for n in range(ROWS)],
    }
    fields = {name: column.type for name, column in COLUMNS.items()}
    columns = {
        name: pa.array(values.get(name, [None] * ROWS), fields[name])
        for name in fields
        if name not in ("keep", "reason")
    }
    columns["embedding_image"] = vectors.to_column(embeddings(models.CLIP_DIM), models.CLIP_DIM)
    columns["embedding_text"] = vectors.to_column(embeddings(models.TEXT_DIM), models.TEXT_DIM)
    columns["part"] = pa.array([0] * ROWS, pa.int64())
    columns["row"] = pa.array(range(ROWS), pa.int64())
    return pa.table(columns)


def stage_options(use: str, folder: Path, base_url: str) -> dict[str, Any]:
    """Options of curation components that have no default, or that would leave this machine."""
    if use in ("score.image_embedding", "score.clip_score"):
        return dict(models.clip_options(folder))
    if use == "score.text_embedding":
        return {"model": models.sentence_model(folder / "sentences")}
    if use == "score.aesthetic":
        np.savez(folder / "head.npz", weight=np.ones((1, models.CLIP_DIM)), bias=np.ones(1))
        return {"weights": str(folder / "head.npz")}
    entries = folder / "entries.txt"
    entries.write_text("circle\nred circle\nsquares\ndog\nstar\n")
    blocked = folder / "blocked.txt"
    blocked.write_text("# none of ours\nexample.com\n")
    seen = folder / "seen.jpg"
    seen.write_bytes(picture(3))
    return {
        "score.metadata_match": {"entries": str(entries)},
        "filter.metadata_balance": {"t": 2},
        "score.clusters": {"clusters": 3},
        "filter.threshold": {"column": "text_area_frac", "at_most": 0.5},
        "filter.top_fraction": {"column": "text_area_frac", "fraction": 0.4},
        "filter.domain_list": {"block": str(blocked)},
        "filter.time_window": {"since": "2021-01-05"},
        "filter.eval_overlap": {
            "pictures": (str(seen),),
            "captions": (str(entries),),
            "min_words": 1,
        },
        "download.fetch": {"allow_hosts": ["127.0.0.1"], "timeout": 5.0},
        "caption.llm_rewrite": {
            "endpoint": f"{base_url}/v1",
            "model": "grammar-paraphraser",
            "rewrites": 2,
        },
    }.get(use, {})


def make_sources(folder: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """For each source its options over files made here, and how many rows it must give."""
    from curate.contract import shards, tars

    jsonl = folder / "rows.jsonl"
    rows = [{"url": f"http://x/{n}.jpg", "caption": f"words {n}"} for n in range(9)]
    jsonl.write_text(
        "\n".join(
            json.dumps(row)
            for row in [*rows, {"url": None, "caption": "c"}, {"url": "u", "caption": 5}]
        )
        + "\nnot json\n"
    )
    tar = folder / "tars" / "00000.tar"
    tar.parent.mkdir()
    blocks = [
        shards.sample_block(f"{n:05d}", [("jpg", picture(n)), ("txt", f"words {n}".encode())])[0]
        for n in range(5)
    ]
    tar.write_bytes(b"".join(blocks) + tars.END)
    photos = folder / "photos"
    photos.mkdir()
    for n in range(4):
        (photos / f"{n}.jpg").write_bytes(picture(n))
        (photos / f"{n}.txt").write_text(f"words {n}")
    return {
        "source.url_table": ({"path": str(jsonl), "rows_per_part": 5}, 12),
        "source.image_tars": ({"path": str(tar.parent)}, 5),
        "source.folder": ({"path": str(photos)}, 4),
    }


Made = Callable[[str], dict[str, Any]]
DECISION_TYPES = {"keep": pa.bool_(), "reason": REASON.type}
