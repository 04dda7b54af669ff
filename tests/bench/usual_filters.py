"""The usual filters: rows per CPU-second of each, English found by two detectors, evaluation pictures found.

    python tests/bench/usual_filters.py
    python tests/bench/usual_filters.py --rows 1000000

Needs the shared data (CLIP_PIPE_SHARED_DATA). Evaluation pictures: the 1,000 of Flickr8k's dev split are
planted re-encoded (quality 50), halved in size, cropped by 2 %, and as PNG among pictures of other sets.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from curate.contract.draw import pair_uid  # noqa: E402
from curate.filter.domain_list import DomainList  # noqa: E402
from curate.filter.eval_overlap import EvalOverlap, Found  # noqa: E402
from curate.filter.time_window import TimeWindow  # noqa: E402
from curate.filter.top_fraction import TopFraction  # noqa: E402
from curate.score.caption_shape import CaptionShape  # noqa: E402
from curate.score.language import Language  # noqa: E402
from curate.score.phash import Phash  # noqa: E402
from curate.stage import RowStage, pool_state  # noqa: E402
from tests.tiny.pictures import tar_files  # noqa: E402

HELD_OUT = "pairs-flickr8k-dev.tar"
OTHERS = ("pairs-flickr8k-train.tar", "pairs-coco-mini-val.tar", "textfree-photos.tar", "scenetext-icdar2015-120.tar", "classify-caltech101.tar", "webshard-laion400m-50.tar", "webshard-cc12m-32.tar")  # fmt: skip
PARTS = 20


def cpu_s(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def repeated(table: pa.Table, rows: int) -> pa.Table:
    return pa.concat_tables([table] * -(-rows // len(table))).slice(0, rows).combine_chunks()


def batches(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(start, rows) for start in range(0, len(table), rows))


def row_rate(stage: RowStage, table: pa.Table) -> float:
    state = stage.open()
    work = lambda: [stage.process(part, state) for part in batches(table, stage.batch_rows)]  # noqa: E731
    return len(table) / cpu_s(work)


def rates(data: Path, rows: int, folder: Path) -> Iterator[tuple[str, float]]:
    """Rows per CPU-second of each stage, one thread."""
    web = repeated(
        pq.read_table(data / "captions-webalt.parquet", columns=["url", "caption"]), rows
    )
    yield "score.language", row_rate(Language(), web)
    yield "score.caption_shape", row_rate(CaptionShape(), web)
    blocked = folder / "blocked.txt"
    blocked.write_text("".join(f"d{n}.example{n % 97}.com\n" for n in range(1_000_000)))
    yield "filter.domain_list, 1M blocked", row_rate(DomainList(block=str(blocked)), web)
    listed = folder / "urls.txt"
    listed.write_text("".join(f"http://host/{n}.jpg\n" for n in range(1_000_000)))
    yield "filter.domain_list, 1M URLs", row_rate(DomainList(urls=str(listed)), web)
    rng = np.random.default_rng(0)
    days = pa.array(rng.integers(15_000, 20_000, rows).astype(np.int32)).cast(pa.date32())
    window = TimeWindow(since="2015-01-01")
    yield "filter.time_window, dates", row_rate(window, pa.table({"crawl_date": days}))
    uids = [pair_uid(str(n), "") for n in range(rows)]
    scores = rng.normal(0.25, 0.05, rows).astype(np.float32)
    pool = pa.table({"uid": uids, "clip_score": scores})
    top, parts = (
        TopFraction(column="clip_score", fraction=0.3),
        list(batches(pool, -(-rows // PARTS))),
    )

    def whole() -> None:
        state = pool_state(top, lambda: parts)
        kept = sum(sum(top.decide(part, state)["keep"].to_pylist()) for part in parts)
        assert kept == int(0.3 * rows + 0.5), kept

    yield "filter.top_fraction, all passes", rows / cpu_s(whole)
    for items in (1_000, 50_000):
        made = rng.integers(0, 256, (items, 32)).astype(np.uint8)
        state = Found([str(n) for n in range(items)], made, {}, [], np.zeros((0, 0)))
        own = rng.integers(0, 256, (4096, 32)).astype(np.uint8)
        table = pa.table({"phash": pa.array([row.tobytes() for row in own], pa.binary())})
        stage = EvalOverlap(pictures=("any",))
        work = lambda: [stage.process(p, state) for p in batches(table, stage.batch_rows)]  # noqa: B023, E731
        yield f"filter.eval_overlap, {items:,} pictures", len(table) / cpu_s(work)


def detectors(data: Path) -> Iterator[tuple[str, float, dict[str, float]]]:
    """Each detector's captions per CPU-second, and the share of English texts that it calls English."""
    import py3langid

    table = pq.read_table(data / "captions-text.parquet", columns=["caption", "source"])
    chosen = table.take(np.random.default_rng(0).choice(len(table), 20_000, replace=False))
    texts, sources = chosen["caption"].to_pylist(), np.array(chosen["source"].to_pylist())
    model = Language().open()
    asked: dict[str, Callable[[str], str]] = {
        "fastText lid.176.ftz": lambda text: model.predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict")[0][1],
        "py3langid": lambda text: py3langid.classify(text)[0],
    }  # fmt: skip
    for name, ask in asked.items():
        ask("warm")
        found: list[str] = []
        seconds = cpu_s(lambda ask=ask, found=found: found.extend(ask(text) for text in texts))  # type: ignore[misc]
        english = np.array([one.endswith("en") for one in found])
        common = [one for one in np.unique(sources) if (sources == one).sum() > 1000]
        yield name, len(texts) / seconds, {one: english[sources == one].mean() for one in common}


def planted(data: Path) -> tuple[pa.Table, list[str | None]]:
    """Hashes of copies of evaluation pictures and of others, and the item that each is a copy of."""
    from PIL import Image

    images: list[bytes] = []
    items: list[str | None] = []
    for name, content in sorted(tar_files(data / HELD_OUT).items()):
        if name.endswith(".jpg"):
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            width, height = picture.size
            left, top = max(width // 100, 1), max(height // 100, 1)
            cut = picture.crop((left, top, width - left, height - top))
            made = [(picture, "JPEG", 50), (picture.resize((width // 2, height // 2)), "JPEG", 90), (cut, "JPEG", 90), (picture, "PNG", 0)]  # fmt: skip
            for image, kind, quality in made:
                file = io.BytesIO()
                image.save(file, kind, **({"quality": quality} if quality else {}))
                images.append(file.getvalue())
                items.append(f"{HELD_OUT.removesuffix('.tar')}/{name}")
    for tar in OTHERS:
        more = [c for n, c in tar_files(data / tar).items() if n.lower().endswith((".jpg", ".png"))]
        images += more
        items += [None] * len(more)
    hashed = Phash().process(pa.table({"image": pa.array(images, pa.binary())}), None)
    return hashed.select(["phash"]), items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = os.environ.get("CLIP_PIPE_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-filters"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"{'stage':<40} rows per CPU-second ({arguments.rows:,} rows)")
    for name, rate in rates(arguments.data, arguments.rows, arguments.out):
        print(f"{name:<40} {rate:>12,.0f}")
    print("\ndetector, captions per CPU-second, share called English by source")
    for name, rate, shares in detectors(arguments.data):
        print(f"{name:<22} {rate:>9,.0f}  " + ", ".join(f"{k} {v:.3f}" for k, v in shares.items()))
    table, items = planted(arguments.data)
    copies = sum(item is not None for item in items)
    print(f"\n{copies:,} planted copies among {len(items) - copies:,} other pictures")
    print("radius  recall  precision  right item")
    for radius in (0, 8, 16, 20, 26, 32, 40):
        stage = EvalOverlap(pictures=(str(arguments.data / HELD_OUT),), radius=radius)
        found = stage.process(table, stage.open())["overlap"].to_pylist()
        hit = sum(one is not None and item is not None for one, item in zip(found, items))
        wrong = sum(one is not None and item is None for one, item in zip(found, items))
        right = sum(one == item for one, item in zip(found, items) if item is not None)
        print(f"{radius:>6}  {hit / copies:.4f}  {hit / max(hit + wrong, 1):>9.4f}  {right / copies:>10.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
