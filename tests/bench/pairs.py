"""Shards for the trainer's benchmarks, made of the shared photographs and captions; rendered where they are not there.

    python tests/bench/pairs.py --out FOLDER [--samples 4096] [--shards 16] [--short-side 256]

`photographs` are crops of the shared photographs brought to a short side, JPEG q95 as img2dataset writes
them, with real alt-texts. `captioned` are the captioned photographs, one sample for each (photograph,
caption), so that no trainer has a caption to choose. Tars are webdataset's (jpg, txt), with `sizes.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from curate.contract import tars
from tests.bench import corpus
from tests.bench.photographs import read_pairs

ROOT = Path(__file__).resolve().parent.parent.parent
_TEXTS = ("captions-webalt.parquet", "captions-text.parquet")
_RENDERED = 50


def data_folder() -> Path | None:
    """The shared data's folder, or None where it is not there."""
    folder = Path(os.environ.get("CLIP_PIPE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def texts(kind: str, count: int, seed: int = 0) -> list[str]:
    """Captions in a random order: "web" (alt-texts), "photo" (people's own words); made ones without the data.

    Repeated where there are fewer than ``count``.
    """
    folder, found = data_folder(), []
    if folder is not None:
        import pyarrow.parquet as pq

        if kind == "web":
            found = pq.read_table(folder / _TEXTS[0], columns=["caption"])["caption"].to_pylist()
        else:
            table = pq.read_table(folder / _TEXTS[1], columns=["caption", "source"]).to_pylist()
            found = [row["caption"] for row in table if row["source"] == "coco-val2017"]
        found = [text for text in found if text]
    rng = random.Random(seed)
    if not found:
        words = [f"word{number}" for number in range(5000)]
        found = [" ".join(rng.choices(words, k=rng.randint(3, 14))) for _ in range(2000)]
    rng.shuffle(found)
    return [found[number % len(found)] for number in range(count)]


def photographs(count: int, short_px: int, square: bool = False, seed: int = 0) -> Iterator[bytes]:
    """``count`` different JPEG bodies with the given short side, q95."""
    import cv2

    cv2.setNumThreads(1)
    folder = corpus.shared_folder()
    bodies = corpus.photographs(folder) if folder else corpus.make(None, _RENDERED, seed)
    pictures = [cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) for body in bodies]
    pictures = [picture for picture in pictures if min(picture.shape[:2]) >= 256]
    rng = np.random.default_rng(seed)
    for number in range(count):
        picture = pictures[number % len(pictures)]
        scale = rng.uniform(0.7, 1.0)
        height, width = (int(side * scale) for side in picture.shape[:2])
        if square:
            height = width = min(height, width)
        top, left = (
            int(rng.integers(whole - part + 1))
            for whole, part in zip(picture.shape[:2], (height, width), strict=True)
        )
        by = short_px / min(height, width)
        size = (max(short_px, round(width * by)), max(short_px, round(height * by)))
        small = cv2.resize(
            picture[top : top + height, left : left + width], size, interpolation=cv2.INTER_AREA
        )
        yield cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write(pairs: Iterator[tuple[bytes, str]], folder: Path, shards: int) -> str:
    """Pairs dealt over ``shards`` tars; returns the brace form of their paths, which every reader takes."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [0] * shards
    with ExitStack() as opened:
        files = [
            opened.enter_context(open(folder / f"{number:05d}.tar", "wb"))
            for number in range(shards)
        ]
        for number, (picture, caption) in enumerate(pairs):
            at = number % shards
            files[at].write(tars.member(f"{number:09d}.jpg", picture))
            files[at].write(tars.member(f"{number:09d}.txt", caption.encode()))
            sizes[at] += 1
        for file in files:
            file.write(tars.END)
    named = {f"{number:05d}.tar": size for number, size in enumerate(sizes)}
    (folder / "sizes.json").write_text(json.dumps(named))
    return f"{folder}/{{{0:05d}..{shards - 1:05d}}}.tar"


def captioned(tar: str, pictures: int = 0) -> tuple[list[tuple[bytes, str]], list[Sequence[str]]]:
    """(every (picture, caption), each picture's captions) of a tar of the shared data.

    Of the first ``pictures`` (0: all), in a random order that is always the same. Raises
    FileNotFoundError without the data.
    """
    folder = data_folder()
    if folder is None or not (folder / tar).is_file():
        raise FileNotFoundError(
            f"{tar} is not in the shared data; set CLIP_PIPE_SHARED_DATA to its folder"
        )
    bodies, rows = read_pairs(folder / tar)
    names = list(bodies)[: pictures or None]
    chosen = set(names)
    pairs = [(bodies[name], caption) for name, caption in rows if name in chosen]
    random.Random(0).shuffle(pairs)
    return pairs, [[c for n, c in rows if n == name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "pairs")
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--short-side", type=int, default=256)
    given = parser.parse_args()
    bodies = photographs(given.samples, given.short_side)
    path = write(
        zip(bodies, texts("web", given.samples), strict=True), given.out / "shards", given.shards
    )
    size_bytes = sum(file.stat().st_size for file in (given.out / "shards").glob("*.tar"))
    print(f"{path}: {given.samples} samples, {size_bytes / given.samples / 1000:.1f} KB each")


if __name__ == "__main__":
    main()
