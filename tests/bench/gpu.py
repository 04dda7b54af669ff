"""Training beside open_clip's own training code, from real 256-px shards: samples/s, MFU, wait for data.

    make bench-gpu                                        ViT-B-32, B-16 and L-14 on this machine's first GPU
    python tests/bench/gpu.py --models ViT-B-16 --rounds 3 --workers 14
    python tests/bench/gpu.py --tiny                      the same code at toy size, on a CPU, in a minute

open_clip               open_clip_train.main with its best flags: amp_bf16, torchcompile, local loss, gather with gradient
clip-pipe, equal        the trainer at equal settings: 77 tokens for every caption, pictures cropped by the loaders
clip-pipe               as it comes: text buckets, pictures cropped on the device
clip-pipe, NVJPEG       the same, pictures decoded on the device too (left out, with the reason, where that can't be)
clip-pipe, FLIP         half of the patches, 32 tokens         (B-16 and L-14)
clip-pipe, CLIPA        112 px, 16 tokens                      (B-16 and L-14)

Contenders take turns, each in a fresh process; the first windows (compiling, filling buffers) are left out, and
a figure is the median of the others. Both are timed by the same meter (`pretrain/loop/meter.py`); on a GPU the
wait for data is read from its own clock. MFU is of the data sheet's bf16 peak (H200: 989 TFLOP/s), at the text
length that was computed; goals are for one H200: 55 % of the 790 TFLOP/s it reaches, that is 44 % MFU.
Shards are made of the shared photographs with real alt-texts (textures where these are not there).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

GOALS = {"ViT-B-32": 9_800, "ViT-B-16": 3_500, "ViT-L-14": 820}  # pairs/s on one H200
BATCHES = {"ViT-B-32": 2048, "ViT-B-16": 1024, "ViT-L-14": 256, "vit_tiny_64": 16}
NEEDED = {
    "open_clip": "open_clip_torch",
    "torchvision": "torchvision",
    "cv2": "opencv-python-headless",
}
THEIRS = {"webdataset": "'webdataset>=0.2.86,<0.3'", "pandas": "pandas", "open_clip_train": "open_clip_torch"}  # fmt: skip
LIMIT_S = 1800
Job = dict[str, Any]


def open_clip(job: Job) -> list[dict[str, Any]]:
    """Its `main`, unchanged but for a loader that is watched."""
    from pretrain.model.encoder import import_open_clip

    logging.disable(logging.INFO)
    library = import_open_clip()
    import torch
    from open_clip_train import main as program

    from pretrain.loop import flops, meter
    from pretrain.loop.world import World
    from pretrain.stream.batch import Batch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(0, 1, device)
    towers = flops.of_config(library.get_model_config(job["model"]))
    assert towers is not None
    watch = meter.Meter(
        world,
        0,
        meter.arithmetic(towers, {"image": "image", "text": "text"}),
        meter.peak(world, "bf16"),
        job["workers"],
    )
    lines: list[dict[str, Any]] = []

    class Watched:
        """A loader that says when it was asked, when it answered, and how fast each window went."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.num_batches, self.num_samples = inner.num_batches, inner.num_samples

        def __iter__(self) -> Iterator[Any]:
            seen = 0
            for number, batch in enumerate(self.inner, 1):
                rows = len(batch[1])
                watch.batch_came(Batch({"text": batch[1]}, [""] * rows, torch.arange(rows)))
                yield batch
                watch.step_done()
                seen += rows
                if number % job["window"] == 0:
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    lines.append(watch.read(seen))

    train_one_epoch = program.train_one_epoch

    def watched(model: Any, data: Any, *rest: Any, **named: Any) -> Any:
        data["train"].dataloader = Watched(data["train"].dataloader)
        return train_one_epoch(model, data, *rest, **named)

    program.train_one_epoch = watched
    folder = tempfile.mkdtemp(dir=job["folder"])
    program.main([
        "--model", job["model"], "--train-data", job["shards"], "--dataset-type", "webdataset", "--dataset-resampled",
        "--train-num-samples", str(job["steps"] * job["batch"]), "--batch-size", str(job["batch"]), "--epochs", "1",
        "--workers", str(job["workers"]), "--precision", "amp_bf16", "--local-loss", "--gather-with-grad",
        "--lr", "1e-4", "--warmup", "10", "--log-every-n-steps", str(job["window"]), "--save-frequency", "0",
        "--logs", folder, "--name", "bench", *(["--torchcompile"] if job["compile"] else []),
        *([] if device.type == "cuda" else ["--device", "cpu"]),
    ])  # fmt: skip
    return lines


def clip_pipe(
    job: Job, tweaks: tuple[Any, ...] = (), equal: bool = False, **settled: str
) -> list[dict[str, Any]]:
    """`pretrain.loop.train.run` itself; its own lines are the windows."""
    from pretrain.loop import train
    from pretrain.loop.settings import Phase, ShardSource, TrainSettings

    lines: list[dict[str, Any]] = []
    phase = Phase(
        samples=job["steps"] * job["batch"], global_batch=job["batch"], lr=1e-4, warmup_samples=10 * job["batch"],
        tweak=tweaks,
    )  # fmt: skip
    settings = TrainSettings(
        model=job["model"], out=tempfile.mkdtemp(dir=job["folder"]), shards=(ShardSource(path=job["shards"]),),
        workers=job["workers"], phase=(phase,), log_every_steps=job["window"], checkpoint_minutes=1e6, stuck_steps=0,
        compile="on" if job["compile"] else "off", **({"text_buckets": (), "augment": "worker"} if equal else {"augment": job["augment"], **settled}),
    )  # fmt: skip
    train.run(settings, seed=0, progress=lines.append)
    # The first step has a line of its own, which is no window.
    return [line for line in lines if line["step"] % job["window"] == 0]


def on_nvjpeg(job: Job) -> list[dict[str, Any]]:
    return clip_pipe(job, augment="device", decode="device")


def flip(job: Job) -> list[dict[str, Any]]:
    from pretrain.model.tweak.patch_drop import PatchDrop
    from pretrain.model.tweak.text_length import TextLength

    return clip_pipe(job, (PatchDrop(fraction=0.5), TextLength(tokens=min(32, job["context"]))))


def clipa(job: Job) -> list[dict[str, Any]]:
    from pretrain.model.tweak.resolution import Resolution
    from pretrain.model.tweak.text_length import TextLength

    return clip_pipe(job, (Resolution(image_size=job["half_px"]), TextLength(tokens=16)))


CONTENDERS = {
    "open_clip": open_clip,
    "clip-pipe, equal": lambda job: clip_pipe(job, equal=True),
    "clip-pipe": clip_pipe,
    "clip-pipe, NVJPEG": on_nvjpeg,
    "clip-pipe, FLIP": flip,
    "clip-pipe, CLIPA": clipa,
}


def one(name: str, job: Job) -> dict[str, Any]:
    """Medians over the windows after the warm-up."""
    lines = CONTENDERS[name](job)[job["warm"] :]
    if not lines:
        raise SystemExit(f"{name}: no window was measured")

    def median(key: str) -> float | None:
        found = [line[key] for line in lines if line.get(key) is not None]
        return statistics.median(found) if found else None

    figures = {key: median(key) for key in ("samples_per_s", "data_wait_frac", "mfu", "gpu_memory_bytes")}  # fmt: skip
    return {**figures, "windows": len(lines), "bottleneck": lines[-1]["bottleneck"]}


def fresh(name: str, job: Job) -> dict[str, Any] | None:
    """One contender in a process of its own; None, and its last words, where it failed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}  # fmt: skip
    command = [sys.executable, __file__, "--one", name, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=LIMIT_S)  # fmt: skip
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def make_shards(folder: Path, samples: int, shards: int) -> str:
    from tests.bench import pairs

    made = zip(pairs.photographs(samples, 256), pairs.texts("web", samples), strict=True)
    return pairs.write(made, folder / "shards", shards)


def missing(names: dict[str, str]) -> str:
    """How to install what is not there; empty if all is."""
    lacking = [package for name, package in names.items() if importlib.util.find_spec(name) is None]
    return f"pip install {' '.join(dict.fromkeys(lacking))}" if lacking else ""


def no_nvjpeg(device: Any) -> str:
    """Why this machine decodes no JPEG on its GPU; empty if it does."""
    from pretrain.stream.device_decode import nvjpeg

    try:
        nvjpeg(device)
    except ValueError as fault:
        return str(fault)
    return ""


def row(model: str, name: str, rounds: list[dict[str, Any]], ruler: float | None) -> str:
    """One line of the table; ``ruler`` is open_clip's rate."""
    rate, wait = (
        statistics.median(found[key] for found in rounds)
        for key in ("samples_per_s", "data_wait_frac")
    )
    mfus = [found["mfu"] for found in rounds if found["mfu"] is not None]
    mfu = f"{statistics.median(mfus):.1%}" if mfus else "-"
    memory = max(found["gpu_memory_bytes"] or 0 for found in rounds) / 1e9
    times = f"{rate / ruler:.2f}" if ruler else "-"
    said = (
        rounds[-1]["bottleneck"] if name != "open_clip" else ""
    )  # its loaders say nothing of their cost
    return f"{model:14s} {name:18s} {rate:10,.1f} {mfu:>7s} {wait:7.1%} {memory:8.1f} {times:>11s}  {said}"


def report(model: str, found: dict[str, list[dict[str, Any]]]) -> None:
    theirs = found.get("open_clip")
    ruler = statistics.median(one["samples_per_s"] for one in theirs) if theirs else None
    for name, rounds in found.items():
        print(row(model, name, rounds, ruler))
    ours = found.get("clip-pipe")
    if ours and model in GOALS:
        rate = statistics.median(one["samples_per_s"] for one in ours)
        twice = f", {rate / ruler:.2f} times open_clip (goal 2)" if ruler else ""
        print(f"{model:14s} goal {GOALS[model]:,} pairs/s on one H200: {rate / GOALS[model]:.0%} of it{twice}")  # fmt: skip
    sys.stdout.flush()


def jobs(given: argparse.Namespace, folder: str, shards: str) -> Iterator[Job]:
    for model in given.models:
        steps = given.window * (given.warm + given.windows)
        yield {
            "model": model, "shards": shards, "folder": folder, "batch": given.batch or BATCHES.get(model, 512),
            "window": given.window, "warm": given.warm, "steps": steps, "workers": given.workers,
            "compile": not given.no_compile, "augment": given.augment, "context": 32 if given.tiny else 77,
            "half_px": 32 if given.tiny else 112,
        }  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--models", nargs="+", default=list(GOALS))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))  # fmt: skip
    parser.add_argument("--batch", type=int, default=0, help="0: what fits an H200, by model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=10, help="steps")
    parser.add_argument("--warm", type=int, default=2, help="windows left out")
    parser.add_argument("--windows", type=int, default=5, help="windows measured")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument("--augment", default="device", choices=["device", "worker"])
    parser.add_argument("--samples", type=int, default=8192, help="pictures in the shards")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="vit_tiny_64, a few steps, no fresh processes")  # fmt: skip
    parser.add_argument("--out", type=Path, help="also write all figures as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tiny:
        given.models, given.rounds, given.window, given.warm, given.windows = ["vit_tiny_64"], 1, 2, 1, 2  # fmt: skip
        given.workers, given.samples, given.no_compile = 1, 96, True
    return given


def main() -> None:
    given = parsed()
    if given.one:
        print(json.dumps(one(given.one, json.loads(given.job))))
        return
    if install := missing(NEEDED):
        sys.exit(f"not installed here: {install}")
    contenders = list(given.contenders)
    if "open_clip" in contenders and (install := missing(THEIRS)):
        print(f"open_clip's trainer is left out; to measure it: {install}", file=sys.stderr)
        contenders.remove("open_clip")
    import torch

    if not torch.cuda.is_available() and not given.tiny:
        sys.exit("no GPU here. `--tiny` tries the same code on a CPU")
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    # In the bench's own process only where it measures there: a decoder takes memory of the GPU.
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    why = no_nvjpeg(device) if given.tiny else ""
    if why and "clip-pipe, NVJPEG" in contenders:
        print(f"clip-pipe, NVJPEG is left out: {why}", file=sys.stderr)
        contenders.remove("clip-pipe, NVJPEG")
    folder = tempfile.mkdtemp(prefix="bench-gpu-")
    figures: dict[str, Any] = {"device": where, "torch": torch.__version__, "workers": given.workers}  # fmt: skip
    try:
        shards = make_shards(Path(folder), given.samples, 4 if given.tiny else 64)
        print(f"{where}, {given.workers} loaders, torch {torch.__version__}, rounds {given.rounds}")
        print(f"{'model':14s} {'':18s} {'samples/s':>10s} {'MFU':>7s} {'wait':>7s} {'GB':>8s} {'x open_clip':>11s}  bottleneck")  # fmt: skip
        for job in jobs(given, folder, shards):
            found: dict[str, list[dict[str, Any]]] = {}
            for _ in range(given.rounds):
                for name in contenders:
                    if job["model"] == "ViT-B-32" and name in ("clip-pipe, FLIP", "clip-pipe, CLIPA"):  # fmt: skip
                        continue
                    measured = one(name, job) if given.tiny else fresh(name, job)
                    if measured:
                        found.setdefault(name, []).append(measured)
            report(job["model"], found)
            figures[job["model"]] = found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
