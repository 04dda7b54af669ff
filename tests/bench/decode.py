"""CPU of one picture from body to encoded result, beside img2dataset's resizer and other ways to do it.

    python tests/bench/decode.py [--pictures 200] [--rounds 2] [--size 256] [--kind all|baseline|progressive]

Contenders take turns on each picture, in one thread, on that thread's CPU clock; PSNR is against the
pixels of img2dataset's own result, capped at 60 dB (identical). The last lines are what the pipe to a
decoding process costs over the same work done in place.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from curate.download.decoders import Decoders
from curate.download.header import header
from curate.download.pictures import PictureOptions, outcome
from curate.download.resize import scaled, target
from tests.bench.corpus import make, shared_folder

Contender = Callable[[bytes], bytes]


def contenders(size: int) -> dict[str, Contender]:
    """Body to JPEG of quality 95 by name; the first is what the others are measured against."""
    return {
        "img2dataset Resizer": _img2dataset(size),
        "exact": lambda body: _ours(body, PictureOptions(image_size=size, quality="exact")),
        "fast": lambda body: _ours(body, PictureOptions(image_size=size)),
        "cv2 reduced, linear": _reduced(size, "LINEAR", 1.0),
        "cv2 reduced, area": _reduced(size, "AREA", 1.0),
        "cv2 reduced 1.5x, area": _reduced(size, "AREA", 1.5),
        "simplejpeg scaled, linear": _simplejpeg(size, "LINEAR", 1.0),
        "simplejpeg scaled 1.5x, area": _simplejpeg(size, "AREA", 1.5),
        "floor: 1/8 decode alone": _eighth,
    }


def _ours(body: bytes, options: PictureOptions) -> bytes:
    found = outcome(body, options)
    assert found.image is not None, found
    return found.image


def _img2dataset(size: int) -> Contender:
    """With the hash and nothing else of img2dataset's downloader, as ``outcome`` has it."""
    from curate.download.img2dataset_engine import borrowed

    resizer = borrowed()[1].Resizer(size, "keep_ratio", False)

    def run(body: bytes) -> bytes:
        hashlib.sha256(body).hexdigest()
        return bytes(resizer(io.BytesIO(body))[0])

    return run


def _reduced(size: int, filter_name: str, headroom: float) -> Contender:
    import cv2

    def run(body: bytes) -> bytes:
        head = header(body)
        assert head is not None
        wanted = target(head.upright, size, "keep_ratio", False)
        assert wanted is not None
        left = head.width / wanted.size[0]
        by = next((by for by in (8, 4, 2) if left >= by * headroom), 1)
        flag = cv2.IMREAD_COLOR if by == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{by}")
        pixels = cv2.imdecode(np.frombuffer(body, np.uint8), flag)
        return _jpeg(scaled(pixels, wanted.size, getattr(cv2, f"INTER_{filter_name}")))

    return run


def _simplejpeg(size: int, filter_name: str, headroom: float) -> Contender:
    import cv2
    import simplejpeg

    def run(body: bytes) -> bytes:
        height, width, *_ = simplejpeg.decode_jpeg_header(body)
        wanted = target((width, height), size, "keep_ratio", False)
        assert wanted is not None
        pixels = simplejpeg.decode_jpeg(
            body,
            "BGR",
            fastdct=True,
            fastupsample=True,
            min_width=int(wanted.size[0] * headroom),
            min_height=int(wanted.size[1] * headroom),
        )
        return _jpeg(scaled(pixels, wanted.size, getattr(cv2, f"INTER_{filter_name}")))

    return run


def _eighth(body: bytes) -> bytes:
    import cv2

    cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    return b""


def _jpeg(pixels: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def psnr(a: bytes, b: bytes) -> float:
    """Of two encoded pictures, in dB, 60 at most."""
    import cv2

    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in (a, b)]
    error = float(((pixels[0].astype(np.float64) - pixels[1]) ** 2).mean())
    return min(60.0, float(10 * np.log10(255**2 / max(error, 1e-9))))


def compare(bodies: list[bytes], rounds: int, size: int) -> None:
    """Print the table."""
    import cv2

    cv2.setNumThreads(1)
    ways = contenders(size)
    spent_s = dict.fromkeys(ways, 0.0)
    near: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for body in bodies:
            first = b""
            for name, way in ways.items():
                began_s = time.thread_time()
                result = way(body)
                spent_s[name] += time.thread_time() - began_s
                first = first or result
                if number == 0 and result:
                    near[name].append(psnr(result, first))
    reference_s = next(iter(spent_s.values()))
    print(f"{'':30} ms CPU   less by   PSNR mean   p5     lowest")
    for name, seconds in spent_s.items():
        line = (
            f"{name:30} {seconds / rounds / len(bodies) * 1e3:6.2f}   x{reference_s / seconds:5.2f}"
        )
        if near[name]:
            found = near[name]
            line += f"   {np.mean(found):6.1f}   {np.percentile(found, 5):6.1f}   {min(found):6.1f}"
        print(line)


def compare_pipe(bodies: list[bytes], rounds: int, size: int) -> None:
    """Print what one decoding process costs over the same work in place, and its memory."""
    options = PictureOptions(image_size=size)
    began_s = time.thread_time()
    for body in bodies * rounds:
        outcome(body, options)
    in_place_s = time.thread_time() - began_s
    came = threading.Semaphore(0)
    decoders = Decoders(
        options, processes=1, timeout_s=60, memory_bytes=1280 << 20, done=lambda *_: came.release()
    )
    decoders.submit(None, b"")
    came.acquire()
    start_s = decoders.costs()["decoder_cpu_s"]
    began_s, began_wall_s = time.process_time(), time.monotonic()
    for number, body in enumerate(bodies * rounds):
        decoders.submit(number, body)
    for _ in range(len(bodies) * rounds):
        came.acquire()
    here_s, wall_s = time.process_time() - began_s, time.monotonic() - began_wall_s
    costs = decoders.costs()
    count = len(bodies) * rounds
    (child,) = decoders._children
    with open(f"/proc/{child.pid}/status") as file:
        held = {
            line.split(":")[0]: int(line.split()[1]) >> 10 for line in file if line.startswith("Vm")
        }
    decoders.close()
    over_s = costs["decoder_cpu_s"] + here_s - in_place_s
    print(
        f"in place {in_place_s / count * 1e3:.2f} ms; in a process {costs['decoder_cpu_s'] / count * 1e3:.2f}"
        f" + {here_s / count * 1e3:.2f} here = {over_s / count * 1e3:+.2f} ms CPU a picture, {wall_s / count * 1e3:.2f} ms wall"
    )
    print(f"start {start_s:.2f} s CPU; {held['VmHWM']} MiB resident at most")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("all", "baseline", "progressive"), default="all")
    arguments = parser.parse_args()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    bodies = make(shared_folder(), arguments.pictures, arguments.seed)
    heads = [header(body) for body in bodies]
    if arguments.kind != "all":
        wanted = arguments.kind == "progressive"
        bodies = [b for b, h in zip(bodies, heads, strict=True) if h and h.progressive == wanted]
    source = "photographs" if shared_folder() else "rendered textures: no shared photographs here"
    kilobytes = float(np.mean([len(body) for body in bodies])) / 1e3
    area = float(np.mean([h.width * h.height for h in map(header, bodies) if h])) / 1e6
    print(f"{len(bodies)} pictures ({source}), {area:.2f} MP, {kilobytes:.0f} KB")
    compare(bodies, arguments.rounds, arguments.size)
    compare_pipe(bodies, arguments.rounds, arguments.size)


if __name__ == "__main__":
    main()
