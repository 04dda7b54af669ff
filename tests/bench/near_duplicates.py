"""How well near copies of pictures are found, over the radius, and hashes per CPU-second.

    python tests/bench/near_duplicates.py [--rows N] [--crop FRAC]

Two sets. `planted`: different pictures (the shared photographs where they are there, the rest made
here), each with one copy: the same bytes, re-encoded at quality 50, at half the size, or cropped.
`products`: the shared pictures of 400 products at 224 px and the same photographs at 60x80.

A copy is found if it is in one group with its original (recall). Precision is the share of refused rows
that are planted copies. Pictures that are copies without having been planted count as false.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from curate.filter.near_duplicate import NearDuplicate  # noqa: E402
from curate.score.phash import Bits, phash  # noqa: E402
from curate.score.picture import decode_uncached  # noqa: E402
from curate.stage import pool_state  # noqa: E402
from tests.bench.match import shared_data  # noqa: E402

_PHOTOGRAPHS = (
    "pairs-flickr8k-train.tar",
    "pairs-flickr8k-dev.tar",
    "pairs-coco-mini-val.tar",
    "textfree-photos.tar",
    "classify-caltech101.tar",
)
_PRODUCTS = "pairs-fashion-near-duplicates.tar"
_RADII: dict[Bits, tuple[int, ...]] = {
    64: (0, 2, 4, 6, 8, 10, 12, 16),
    256: (0, 4, 8, 12, 16, 20, 24, 26, 28, 32, 40, 48, 63),
}
_KINDS = ("same bytes", "quality 50", "half size", "cropped")


def photographs(names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the pictures in shared tars; nothing where they are not there."""
    data = shared_data()
    for name in names:
        if data is None or not (data / name).exists():
            continue
        with tarfile.open(data / name) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None and member.name.endswith((".jpg", ".jpeg", ".png")):
                    yield f"{name}/{member.name}", file.read()


def made(number: int) -> bytes:
    """A picture like no other: a field of colours, a few shapes, and grain. JPEG, about 200 px."""
    rng = np.random.default_rng(number)
    width, height = rng.integers(150, 260, 2).tolist()
    cells = rng.integers(0, 256, (*rng.integers(2, 14, 2), 3), dtype=np.uint8)
    image = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        x, y = rng.integers(-40, 240, 2).tolist()
        box = (x, y, x + int(rng.integers(15, 140)), y + int(rng.integers(15, 140)))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=colour)
    grain = np.asarray(image, np.int64) + rng.normal(0, 6, (height, width, 3))
    return jpeg(Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)), 88)


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


def near_copy(data: bytes, kind: str, crop_frac: float) -> bytes:
    """One of ``_KINDS`` of copies. Half of ``crop_frac`` of width and height goes at either end."""
    if kind == "same bytes":
        return data
    image = Image.fromarray(decode_uncached(data))
    if kind == "quality 50":
        return jpeg(image, 50)
    if kind == "half size":
        half = (max(1, image.width // 2), max(1, image.height // 2))
        return jpeg(image.resize(half, Image.Resampling.BICUBIC), 90)
    left, top = image.width * crop_frac / 2, image.height * crop_frac / 2
    box = (round(left), round(top), round(image.width - left), round(image.height - top))
    return jpeg(image.crop(box), 90)


Hashes = dict[Bits, list[bytes | None]]


def hashed(pictures: Iterator[bytes]) -> Hashes:
    found: Hashes = {64: [], 256: []}
    for data in pictures:
        pixels = decode_uncached(data)
        for bits, column in found.items():
            column.append(phash(pixels, bits))
    return found


def planted(rows: int, crop_frac: float) -> tuple[Hashes, Hashes, list[str]]:
    """Hashes of originals and of their copies, in the same order, and each copy's kind."""
    originals = [data for _, data in photographs(_PHOTOGRAPHS)][: rows // 2]
    real = len(originals)
    originals += [made(number) for number in range(rows // 2 - real)]
    kinds = [_KINDS[n % len(_KINDS)] for n in range(len(originals))]
    print(
        f"planted: {real} photographs and {len(originals) - real} made pictures, each with a copy"
    )
    copies = (near_copy(data, kind, crop_frac) for data, kind in zip(originals, kinds, strict=True))
    return hashed(iter(originals)), hashed(copies), kinds


def products() -> tuple[Hashes, Hashes, list[str]] | None:
    """Hashes of the products' large pictures and of the small ones, in the same order."""
    pictures = dict(photographs((_PRODUCTS,)))
    large = sorted(name for name in pictures if "/large/" in name)
    if not large:
        return None
    small = [name.replace("/large/", "/small/") for name in large]
    print(f"products: {len(large)} pictures at 224 px and the same at 60x80")
    sides = (hashed(pictures[name] for name in names) for names in (large, small))
    return next(sides), next(sides), ["60x80"] * len(large)


def groups(hashes: list[bytes | None], radius: int) -> list[str | None]:
    """For each row, originals first, the uid (its number) of the row that stays for it."""
    count = len(hashes)
    columns = {"uid": [str(n) for n in range(count)], "phash": pa.array(hashes, pa.binary())}
    table = pa.table({**columns, "part": np.zeros(count, np.int64), "row": np.arange(count)})
    stage = NearDuplicate(radius=radius)
    state = pool_state(stage, lambda: [table])
    found: list[str | None] = stage.decide(table, state)["near_duplicate_of"].to_pylist()
    return found


def curve(originals: Hashes, copies: Hashes, kinds: list[str]) -> None:
    """A line per hash and radius."""
    names = sorted(set(kinds), key=kinds.index)
    count = len(kinds)
    print(f"{'bits':>5}{'radius':>8}{'precision':>11}{'recall':>8}{'false':>7}", *(f"{n:>12}" for n in names), sep="")  # fmt: skip
    for bits, radii in _RADII.items():
        for radius in radii:
            of = groups(originals[bits] + copies[bits], radius)
            group = [str(n) if uid is None else uid for n, uid in enumerate(of)]
            found = np.array([group[n] == group[n + count] for n in range(count)])
            false = sum(uid is not None for uid in of[:count])
            refused = sum(uid is not None for uid in of)
            shares = [found[np.array(kinds) == name].mean() for name in names]
            print(f"{bits:>5}{radius:>8}{1 - false / max(1, refused):>11.4f}{found.mean():>8.4f}{false:>7}", *(f"{share:>12.4f}" for share in shares), sep="")  # fmt: skip


def rates(seconds: float) -> None:
    """Hashes per CPU-second beside imagehash, one thread, the same bits."""
    import imagehash

    def theirs(pixels: np.ndarray, bits: Bits) -> object:
        return imagehash.phash(Image.fromarray(pixels), 8 if bits == 64 else 16)

    def theirs_from_bytes(data: bytes, bits: Bits) -> object:
        return imagehash.phash(Image.open(io.BytesIO(data)).convert("RGB"), 8 if bits == 64 else 16)

    data = [content for _, content in photographs(("pairs-coco-mini-val.tar",))]
    data = data or [made(number) for number in range(80)]
    pixels = [decode_uncached(one) for one in data]
    across = round(float(np.mean([one.shape[1] for one in pixels])))
    down = round(float(np.mean([one.shape[0] for one in pixels])))
    print(f"hashes per CPU-second, {len(data)} pictures of about {across}x{down} px")
    for bits in _RADII:
        rows: dict[str, tuple[Callable[..., object], Sequence[object]]] = {
            "decoded pixels": (phash, pixels),
            "decoded pixels, imagehash": (theirs, pixels),
            "bytes": (lambda one, bits: phash(decode_uncached(one), bits), data),
            "bytes, imagehash": (theirs_from_bytes, data),
        }
        for name, (call, inputs) in rows.items():
            print(f"{bits:>5} bits from {name:<27}{_rate(call, inputs, bits, seconds):>6.0f}")


def _rate(
    call: Callable[..., object], inputs: Sequence[object], bits: Bits, seconds: float
) -> float:
    """Calls per CPU-second; the best of three."""
    best = 0.0
    for _ in range(3):
        done, started = 0, time.process_time()
        while time.process_time() - started < seconds / 3:
            for one in inputs:
                call(one, bits)
            done += len(inputs)
        best = max(best, done / (time.process_time() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000, help="pictures of the planted set")
    parser.add_argument("--crop", type=float, default=0.02, help="share of each side cropped away")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time for each rate")
    arguments = parser.parse_args()
    rates(arguments.seconds)
    real = products()
    if real is not None:
        curve(*real)
    curve(*planted(arguments.rows, arguments.crop))


if __name__ == "__main__":
    main()
