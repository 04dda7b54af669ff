"""Web-like photographs to measure with: 800 to 2000 px, mean near 1.2 MP and 250 KB, one in five progressive.

    from tests.bench.corpus import make, shared_folder
    bodies = make(shared_folder(), 300, seed=0)

Made from the shared photographs: crops, enlarged, with grain, so that a byte count like the web's is
reached. Without them textures are rendered instead (``make(None, ...)``); figures then say so.
Run as a script it prints what a corpus is made of, or writes it out:

    python -m tests.bench.corpus --pictures 300 [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_ROOT = Path(__file__).resolve().parent.parent.parent
_TARS = ("scenetext-icdar2015-120.tar", "textfree-photos.tar", "pairs-coco-mini-val.tar")
_MOST_ENLARGED = 4.0
_PROGRESSIVE_EVERY = 5
_FULL_CHROMA_EVERY = 11


def shared_folder() -> Path | None:
    """Where the shared photographs are, or None."""
    folder = Path(os.environ.get("CLIP_PIPE_SHARED_DATA", _ROOT.parent / "shared" / "data"))
    return folder if all((folder / name).is_file() for name in _TARS) else None


def make(folder: Path | None, count: int, seed: int = 0) -> list[bytes]:
    """``count`` JPEG bodies, the same for the same arguments; textures where ``folder`` is None."""
    import cv2

    cv2.setNumThreads(1)
    sources = [] if folder is None else list(photographs(folder))
    return [_body(sources, index, np.random.default_rng((seed, index))) for index in range(count)]


def photographs(folder: Path) -> Iterator[bytes]:
    """The photographs themselves, as they are stored: JPEG of 256 to 1280 px."""
    for name in _TARS:
        with tarfile.open(folder / name) as tar:
            members = [m for m in tar if m.isfile() and m.name.endswith(".jpg")]
            for member in sorted(members, key=lambda m: m.name):
                file = tar.extractfile(member)
                if file is not None:
                    yield file.read()


def _body(sources: list[bytes], index: int, rng: np.random.Generator) -> bytes:
    import cv2

    long_px = int(800 + 1200 * rng.random() ** 1.4)  # mean area near 1.2 MP
    short_px = int(long_px * rng.uniform(0.56, 0.85))
    size = (long_px, short_px) if rng.random() < 0.75 else (short_px, long_px)
    pixels = _scene(sources, size, rng)
    grain = rng.normal(0, 1, (size[1], size[0], 1)).astype(np.float32)
    grain = cv2.GaussianBlur(grain, (0, 0), 0.7)[..., None] * rng.uniform(2.0, 7.0)
    pixels = np.clip(np.rint(pixels + grain), 0, 255).astype(np.uint8)
    full_chroma = index % _FULL_CHROMA_EVERY == 0
    options = [
        cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(82, 96)),
        cv2.IMWRITE_JPEG_PROGRESSIVE, int(index % _PROGRESSIVE_EVERY == 0),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full_chroma else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]  # fmt: skip
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def _scene(sources: list[bytes], size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Pixels without grain: float32, shape (height, width, 3)."""
    import cv2

    width, height = size
    if not sources:
        return _texture(size, rng)
    picture = cv2.imdecode(np.frombuffer(sources[rng.integers(len(sources))], np.uint8), 1)
    shape = picture.shape[:2]
    scale = max(width / shape[1], height / shape[0])
    scale = min(max(scale, 1.0) * rng.uniform(1.0, 1.15), max(scale, _MOST_ENLARGED))
    crop_w, crop_h = min(shape[1], int(width / scale)), min(shape[0], int(height / scale))
    x = int(rng.integers(shape[1] - crop_w + 1))
    y = int(rng.integers(shape[0] - crop_h + 1))
    crop = picture[y : y + crop_h, x : x + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    enlarged = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    soft = cv2.GaussianBlur(enlarged, (0, 0), 1.5)
    return enlarged + 0.8 * (enlarged - soft)


def _texture(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smoothed noise at octaves from the whole picture down to 4 px: a spectrum like a photograph's."""
    import cv2

    width, height = size
    total = np.full((height, width, 3), 128, np.float32)
    for power in range(1, 9):
        cells = 2**power
        if cells * 4 > min(size):
            break
        noise = rng.normal(0, 90 / cells**0.6, (cells, cells, 3)).astype(np.float32)
        total += cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    return total


def main() -> None:
    sys.path.insert(0, str(_ROOT))
    from curate.download.header import header

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = shared_folder()
    bodies = make(folder, arguments.pictures, arguments.seed)
    headers = [head for body in bodies if (head := header(body))]
    area = np.mean([h.width * h.height for h in headers]) / 1e6
    progressive = np.mean([h.progressive for h in headers])
    print(f"{len(bodies)} pictures of {'photographs' if folder else 'rendered textures'}")
    print(
        f"{area:.2f} MP, {np.mean([len(b) for b in bodies]) / 1000:.0f} KB, {progressive:.0%} progressive"
    )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for index, body in enumerate(bodies):
            (arguments.out / f"{index:05d}.jpg").write_bytes(body)


if __name__ == "__main__":
    main()
