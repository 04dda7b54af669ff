"""Loading real 256-px shards beside open_clip's loader and litdata: CPU seconds of the process and its workers.

    python tests/bench/loader.py [--samples 4096] [--passes 2] [--rounds 3] [--litdata-python PATH]

All give batches of 64 of one random crop (area 0.9 to 1, antialiased bicubic, 224 px) and the ids of the
caption, from two workers. Counting starts after the first batches, when workers, indexes and buffers are
there, and goes over a whole number of passes. Contenders take turns, each in a fresh process.

open_clip                its `get_wds_dataset` with its own training transform: float32, normalised in workers
clip-pipe                `pretrain.stream` as the trainer has it: uint8, normalised on the device
clip-pipe, float32 too   the same, and normalised to float32 in the loop on the CPU
litdata                  its StreamingDataset over the same JPEG bytes and its loader; our decoder, crop, tokenizer

litdata needs a Python of its own in which it and the trainer's packages can be imported: a virtual
environment with litdata, and a .pth file that names this environment's site-packages.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import pairs
from tests.bench.contenders import tree_cpu_s
from tests.bench.rounds import Measured, Rounds, fresh

_TOKENIZER = "ViT-B-32"
_OURS = ("clip-pipe", "clip-pipe, float32 too")
Job = dict[str, Any]


def open_clip(job: Job) -> Iterable[Any]:
    from tests.bench.open_clip_trainer import options

    parsed = options(
        "--train-data", job["shards"], "--dataset-type", "webdataset",
        "--train-num-samples", str((job["skip"] + job["batches"] + 16) * job["batch"]),
        "--batch-size", str(job["batch"]), "--workers", str(job["workers"]), "--model", _TOKENIZER,
    )  # fmt: skip
    import open_clip as library
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from open_clip_train.data import get_wds_dataset

    transform = image_transform_v2(PreprocessCfg(size=job["size"]), is_train=True)
    tokenizer = library.get_tokenizer(_TOKENIZER)
    return get_wds_dataset(parsed, transform, is_train=True, tokenizer=tokenizer).dataloader


def clip_pipe(job: Job) -> Iterable[Any]:
    from pretrain.stream.batch import LocalBatches, Stream, loader
    from pretrain.stream.tars import TarSet
    from pretrain.stream.view.caption_mix import CaptionMix
    from pretrain.stream.view.crop import Crop

    views = [Crop(size=job["size"]), CaptionMix()]
    stream = Stream([TarSet(job["shards"])], [1.0], views, _tokenizer(), 0)
    end = (job["skip"] + job["batches"] + 16) * job["batch"]
    return loader(stream, LocalBatches(0, end, job["batch"]), job["workers"], pin=False)


def normalised(job: Job) -> Iterator[Any]:
    """As clip_pipe, with what its device does to pictures done here."""
    import torch

    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1) * 255
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1) * 255
    for batch in clip_pipe(job):
        image = batch.views["image"].permute(0, 3, 1, 2).float().sub_(mean).div_(std)
        yield image, batch.views["text"]


def litdata(job: Job) -> Iterable[Any]:
    import torch
    from litdata import StreamingDataLoader, StreamingDataset

    from pretrain.stream.batch import Sample
    from pretrain.stream.view.crop import Crop

    crop, tokenize, rng = Crop(size=job["size"]), _tokenizer(), np.random.default_rng(0)

    class Pairs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[np.ndarray, str]:
            stored = super().__getitem__(index)
            sample = Sample("", stored["image"], stored["caption"])
            return crop(sample, rng), stored["caption"]

    def collate(rows: list[tuple[np.ndarray, str]]) -> tuple[Any, Any]:
        pictures, captions = zip(*rows, strict=True)
        return torch.from_numpy(np.stack(pictures)), tokenize(list(captions))

    return StreamingDataLoader(
        Pairs(job["litdata"], shuffle=True),
        batch_size=job["batch"],
        num_workers=job["workers"],
        collate_fn=collate,
        prefetch_factor=4,
    )


def _tokenizer() -> Any:
    from pretrain.model.encoder import import_open_clip
    from pretrain.model.tokens import SafeTokenizer

    return SafeTokenizer(import_open_clip().get_tokenizer(_TOKENIZER))


CONTENDERS: dict[str, Callable[[Job], Iterable[Any]]] = {
    "open_clip": open_clip,
    _OURS[0]: clip_pipe,
    _OURS[1]: normalised,
    "litdata": litdata,
}


def measure(name: str, job: Job) -> Measured:
    """One contender in this process: CPU of the tree and wall, per sample, start-up left out."""
    batches = iter(CONTENDERS[name](job))
    for _ in range(job["skip"]):
        next(batches)
    began_s, began_cpu_s = time.monotonic(), tree_cpu_s()
    for _ in range(job["batches"]):
        rows = next(batches)
    samples = job["batches"] * job["batch"]
    found = {
        "cpu_ms": 1000 * (tree_cpu_s() - began_cpu_s) / samples,
        "wall_ms": 1000 * (time.monotonic() - began_s) / samples,
    }
    image = rows[0] if isinstance(rows, (tuple, list)) else rows.views["image"]
    assert len(image) == job["batch"], image.shape
    del batches  # ends its workers, so that they take nothing from the next contender
    gc.collect()
    return {**found, "pixels": str(image.dtype).removeprefix("torch.")}


def make_litdata(job: Job) -> Measured:
    """The samples of the shards as litdata's chunks, once for each pass: its epochs restart the workers."""
    from litdata import optimize

    wanted = (job["skip"] + job["batches"] + 2 * job["workers"] + 2) * job["batch"]
    optimize(
        fn=partial(_litdata_sample, str(Path(job["shards"]).parent)), inputs=list(range(wanted)),
        output_dir=job["litdata"], chunk_bytes="16MB", num_workers=1,
    )  # fmt: skip
    return {"samples": wanted}


def _litdata_sample(folder: str, number: int) -> dict[str, Any]:
    stored = _stored(folder)
    image, caption = stored[number % len(stored)]
    return {"image": image, "caption": caption}


@cache
def _stored(folder: str) -> list[tuple[bytes, str]]:
    return list(_read(Path(folder)))


def _read(folder: Path) -> Iterator[tuple[bytes, str]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        for name, body in members.items():
            if name.endswith(".jpg"):
                yield body, members[name.removesuffix(".jpg") + ".txt"].decode()


def same_pixels(size: int, count: int = 24) -> tuple[float, float]:
    """PSNR in dB, mean and lowest, of our view against open_clip's transform where both take the whole picture."""
    from pretrain.model.encoder import import_open_clip
    from pretrain.stream.batch import Sample
    from pretrain.stream.view.crop import Crop

    import_open_clip()
    import io

    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image

    plain = PreprocessCfg(size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    transform = image_transform_v2(plain, True, {"scale": (1.0, 1.0)})
    crop, found = Crop(size=size, scale=(1.0, 1.0)), []
    for body in pairs.photographs(count, 256, square=True):
        theirs = transform(Image.open(io.BytesIO(body))).permute(1, 2, 0).numpy() * 255
        ours = np.asarray(crop(Sample("", body, ""), np.random.default_rng(0)), np.float64)
        error = float(((np.rint(theirs) - ours) ** 2).mean())
        found.append(min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-9)))))
    return float(np.mean(found)), min(found)


def compare(given: argparse.Namespace, folder: Path) -> None:
    """Make the data, let contenders take turns, print the table and the goals."""
    bodies = pairs.photographs(given.samples, 256)
    captions = pairs.texts("web", given.samples)
    shards = pairs.write(zip(bodies, captions, strict=True), folder / "shards", given.shards)
    batches = given.passes * given.samples // given.batch
    job = {
        "shards": shards, "litdata": str(folder / "litdata"), "skip": given.skip, "batches": batches,
        "batch": given.batch, "workers": given.workers, "size": given.size,
    }  # fmt: skip
    python = {"litdata": given.litdata_python or sys.executable}
    names = [name for name in CONTENDERS if not given.contenders or name in given.contenders]
    if "litdata" in names and not _has_litdata(python["litdata"]):
        print(
            "litdata: not measured. hint: --litdata-python PATH of a Python that has it (see --help)"
        )
        names.remove("litdata")
    if "litdata" in names:
        fresh(__file__, "make litdata", job, python["litdata"])
    rounds = Rounds(
        f"{batches} batches of {given.batch}, {given.workers} workers, {given.size} px, tokenised"
    )
    for _ in range(given.rounds):
        for name in names:
            rounds.add(name, fresh(__file__, name, job, python.get(name, sys.executable)))
    rounds.show(["pixels"])
    rounds.goal(_OURS[0], "open_clip", 3.3)
    rounds.goal(_OURS[0], "litdata", 1.0)


def _has_litdata(python: str) -> bool:
    return not subprocess.run([python, "-c", "import litdata"], capture_output=True).returncode


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4096, help="in the shards")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--passes", type=int, default=2, help="over the shards, measured")
    parser.add_argument("--skip", type=int, default=16, help="batches before counting starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--litdata-python", default="", metavar="PATH")
    parser.add_argument("--contenders", nargs="*", choices=list(CONTENDERS))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--job", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        job = json.loads(given.job)
        print(
            json.dumps(
                make_litdata(job) if given.one == "make litdata" else measure(given.one, job)
            )
        )
        return
    kind = "photographs" if pairs.corpus.shared_folder() else "rendered: no shared photographs here"
    print(f"{given.samples} samples ({kind}) in {given.shards} shards, 256 px short side, JPEG q95")
    mean, lowest = same_pixels(given.size)
    print(
        f"pixels beside open_clip's transform on the same crop: PSNR {mean:.1f} dB, lowest {lowest:.1f}"
    )
    with tempfile.TemporaryDirectory() as name:
        compare(given, Path(name))


if __name__ == "__main__":
    main()
