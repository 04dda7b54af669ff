"""What is learned beside open_clip's trainer: the same model, photographs, samples and schedule, three seeds each.

    python tests/bench/trainers.py [--samples 45000] [--seeds 0 1 2] [--batch 128] [--precision fp32]

`vit_tiny_64` on captioned photographs of the shared data (3,000 with five captions each, every pair a sample of
its own), judged on 1,000 held-out ones by `evaluate.retrieval`, for both trainers: one ruler.

open_clip    `python -m open_clip_train.main` (by `open_clip_trainer.py`) on the same tars
clip-pipe    `clip-pipe train` and `clip-pipe eval`

Learning rate, warm-up, cosine, AdamW and batch are the same. Each keeps what else its own trainer does: order of
samples, which parameters decay, the crop's aspect, initial weights. CPU seconds are of the whole training command,
on one thread unless OMP_NUM_THREADS says otherwise, with what one loader process takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import pairs

ROOT = Path(__file__).resolve().parent.parent.parent
_TRAIN, _HELD_OUT = "pairs-flickr8k-train.tar", "pairs-flickr8k-dev.tar"
_MODEL, _WEIGHT_DECAY = "vit_tiny_64", 0.2
_WARMUP_FRAC = 0.05
_SHOWN = tuple(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))

_RECIPE = """
name = "bench"
seed = {seed}
[train]
model = "{model}"
shards = "{shards}"
out = "{out}/run"
precision = "{precision}"
workers = 1
log_every_steps = 50
checkpoint_minutes = 1000
[[train.phase]]
samples = {samples}
global_batch = {batch}
lr = {lr}
warmup_samples = {warmup}
weight_decay = {decay}
[[evaluate]]
use = "retrieval"
path = "{held_out}"
name = "held-out"
"""
Figures = dict[str, float]


def open_clip(
    given: argparse.Namespace, seed: int, shards: str, held_out: str, out: Path
) -> Figures:
    steps = math.ceil(given.samples / given.batch)
    cpu_s = run(
        [
            str(ROOT / "tests/bench/open_clip_trainer.py"),
            "--model", _MODEL, "--train-data", shards, "--dataset-type", "webdataset",
            "--train-num-samples", str(steps * given.batch), "--epochs", "1", "--batch-size", str(given.batch),
            "--lr", str(given.lr), "--wd", str(_WEIGHT_DECAY), "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6",
            "--warmup", str(round(steps * _WARMUP_FRAC)), "--seed", str(seed), "--workers", "1",
            "--precision", {"fp32": "fp32", "bf16": "amp_bf16"}[given.precision],
            "--logs", str(out), "--name", "run", "--log-every-n-steps", "50",
        ],
        out,
    )  # fmt: skip
    return {**judged(str(out / "run/checkpoints/epoch_1.pt"), held_out), "cpu_s": cpu_s}


def judged(weights: str, held_out: str) -> Figures:
    """Our retrieval figures of weights in open_clip's format."""
    import torch

    from pretrain.evaluate.retrieval import Retrieval
    from pretrain.model.encoder import build

    encoder = build(_MODEL, weights).eval()
    return Retrieval(path=held_out).run(encoder, torch.device("cpu"))


def clip_pipe(
    given: argparse.Namespace, seed: int, shards: str, held_out: str, out: Path
) -> Figures:
    recipe = out / "bench.toml"
    recipe.write_text(
        _RECIPE.format(
            seed=seed, model=_MODEL, shards=shards, out=out, precision=given.precision, samples=given.samples,
            batch=given.batch, lr=given.lr, warmup=round(given.samples * _WARMUP_FRAC), decay=_WEIGHT_DECAY,
            held_out=held_out,
        )
    )  # fmt: skip
    cpu_s = run([str(ROOT / "cli.py"), "train", str(recipe)], out)
    command = [sys.executable, str(ROOT / "cli.py"), "eval", str(recipe), "--json"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return {**json.loads(told.stdout)["figures"]["held-out"], "cpu_s": cpu_s}


CONTENDERS: dict[str, Callable[..., Figures]] = {"open_clip": open_clip, "clip-pipe": clip_pipe}


def run(arguments: list[str], out: Path) -> float:
    """CPU seconds of a Python program and its children; its words go to ``out``/log. Ends this one if it fails."""
    before_s = _children_cpu_s()
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}
    with open(out / "log", "w") as log:
        done = subprocess.run(
            [sys.executable, *arguments], stdout=log, stderr=log, cwd=ROOT, env=environment
        )
    if done.returncode:
        sys.exit(
            f"{arguments[0]} ended with {done.returncode}:\n{(out / 'log').read_text()[-3000:]}"
        )
    return _children_cpu_s() - before_s


def chance(captions: list[int]) -> Figures:
    """R@K of guessing, for pictures with so many captions each: shares in [0, 1]."""
    every, pictures = sum(captions), len(captions)

    def missed(own: int, k: int) -> float:
        return math.comb(every - own, k) / math.comb(every, k)

    return {
        f"{way}_r{k}": k / pictures
        if way == "text_to_image"
        else statistics.mean(1 - missed(own, k) for own in captions)
        for way in ("image_to_text", "text_to_image")
        for k in (1, 5, 10)
    }


def compare(given: argparse.Namespace, folder: Path) -> None:
    train, _ = pairs.captioned(_TRAIN, given.pictures)
    shards = pairs.write(iter(train), folder / "shards", 8)
    data = pairs.data_folder()
    assert data is not None
    held_out = str(data / _HELD_OUT)
    _, captions = pairs.captioned(_HELD_OUT)
    print(
        f"{len(train)} pairs, {given.samples} samples seen in batches of {given.batch}, lr {given.lr}, {given.precision}"
    )
    found: dict[str, list[Figures]] = {name: [] for name in CONTENDERS}
    for seed in given.seeds:
        for name, contender in CONTENDERS.items():
            out = Path(tempfile.mkdtemp(dir=folder))
            figures = contender(given, seed, shards, held_out, out)
            found[name].append(figures)
            line = ", ".join(f"{key} {figures[key]:.3f}" for key in _SHOWN)
            print(f"  seed {seed} {name}: {line}", file=sys.stderr, flush=True)
    show(found, chance([len(own) for own in captions]))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(found: dict[str, list[Figures]], guessing: Figures) -> None:
    """Means and spreads (smallest to largest) over seeds, and whether ours is below all of theirs."""
    print(
        f"\n{'':16s}{'chance':>9s}" + "".join(f"{name:>30s}" for name in found) + "   clip-pipe is"
    )
    for key in _SHOWN:
        values = {name: [one[key] for one in runs] for name, runs in found.items()}
        cells = "".join(
            f"{f'{statistics.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})':>30s}"
            for v in values.values()
        )
        ours, theirs = values["clip-pipe"], values["open_clip"]
        print(f"{key:16s}{guessing[key]:9.4f}{cells}   {verdict(ours, theirs)}")
    cells = "".join(
        f"{statistics.mean(one['cpu_s'] for one in runs):30.0f}" for runs in found.values()
    )
    print(f"{'CPU s a run':16s}{'':9s}{cells}")


def verdict(ours: list[float], theirs: list[float]) -> str:
    """Where our mean lies beside the spread of theirs."""
    mean = statistics.mean(ours)
    if min(theirs) <= mean <= max(theirs):
        return "within the spread"
    if mean > max(theirs):
        return "above"
    return "within the spread" if max(ours) >= min(theirs) else "BELOW"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=45_000, help="seen in a run")
    parser.add_argument("--pictures", type=int, default=0, help="to train on; 0: all 3,000")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        compare(given, Path(name))


if __name__ == "__main__":
    main()
