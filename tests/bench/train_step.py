"""The whole training step beside open_clip's, on one CPU thread: forward, loss, backward, AdamW.

    python tests/bench/train_step.py [--models vit_tiny_64:32 ViT-B-32:16] [--precision fp32 bf16] [--rounds 3]
    python tests/bench/train_step.py --profile [--models vit_tiny_64:32]      where our step's time goes

CPU seconds of the training process a step. Contenders take turns, each in a fresh process; half of the steps
are taken before counting starts.

open_clip             `open_clip_train.train.train_one_epoch` with its model, ClipLoss and the AdamW of its `main`;
                      batches are there already, as float32, and cost it nothing
clip-pipe             `pretrain.loop.train.run` over shards, one loader process (not counted): a batch comes
                      through the loader as uint8, is normalised, logged once; captions at full length
clip-pipe, buckets    the same with text_buckets = [16, 32], once for web alt-texts, once for people's captions

Goals: equal settings not slower than open_clip; with buckets at least 1.3 times as fast.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.bench import pairs
from tests.bench.rounds import Measured, Rounds, fresh

_LR, _WEIGHT_DECAY = 5e-4, 0.2
_FULL = "clip-pipe"
_BUCKETS = {"web": "clip-pipe, buckets, web", "photo": "clip-pipe, buckets, photo"}
_SHARDS = 4
Job = dict[str, Any]


def made_model(name: str, folder: Path) -> str:
    """The model's name; for `NAME@L` the path of its configuration with a text length of L tokens."""
    stem, _, length = name.partition("@")
    if not length:
        return stem
    from pretrain.model.encoder import import_open_clip

    config = import_open_clip().get_model_config(stem)
    config["text_cfg"]["context_length"] = int(length)
    path = folder / f"{stem}_text{length}.json"
    path.write_text(json.dumps(config))
    return str(path)


class _Counted:
    """open_clip's data: batches of one list, over and over; notes the CPU time when the first half is done."""

    def __init__(self, batches: list[Any], steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.num_batches, self.num_samples = steps, steps * len(batches[0][0])
        self.dataloader, self.began = self, (0.0, 0.0)

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            if step == self.steps // 2:
                self.began = (time.process_time(), time.monotonic())
            yield self.batches[step % len(self.batches)]


def open_clip(job: Job) -> Measured:
    from tests.bench.open_clip_trainer import optimizer_as_in_main, options

    name = job["model"]
    parsed = options(
        "--model", Path(name).stem, "--batch-size", str(job["batch"]), "--lr", str(_LR), "--wd", str(_WEIGHT_DECAY),
        "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--dataset-type", "synthetic",
        "--precision", {"fp32": "fp32", "bf16": "amp_bf16"}[job["precision"]],
    )  # fmt: skip
    import open_clip as library
    import torch
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    if name.endswith(".json"):
        library.add_model_config(Path(name))
    torch.manual_seed(0)
    model, _, _ = library.create_model_and_transforms(
        Path(name).stem, precision=parsed.precision, output_dict=True
    )
    side = model.visual.image_size[0]
    tokens = library.get_tokenizer(Path(name).stem)(pairs.texts("web", 4 * job["batch"]))
    rows = [(torch.randn(job["batch"], 3, side, side), part) for part in tokens.split(job["batch"])]
    data = _Counted(rows, 2 * job["steps"])
    optimizer = optimizer_as_in_main(model, parsed)
    scheduler = cosine_lr(optimizer, _LR, 1, data.num_batches)
    loss = library.create_loss(parsed)
    train_one_epoch(model, {"train": data}, loss, 0, optimizer, None, scheduler, None, parsed)
    return _per_sample(job, data.began, (time.process_time(), time.monotonic()))


def clip_pipe(
    job: Job, buckets: tuple[int, ...] = (), words: str = "web", profiler: Any = None
) -> Measured:
    """Lines of metrics come after the first step, half-way, and at the end: the second half counts."""
    from pretrain.loop import train
    from pretrain.loop.settings import Phase, ShardSource, TrainSettings

    seen: list[tuple[float, float]] = []

    def line_came(line: dict[str, Any]) -> None:
        seen.append((time.process_time(), time.monotonic()))
        if profiler is not None:
            (lambda: None, profiler.enable, profiler.disable)[len(seen) - 1]()

    phase = Phase(
        samples=2 * job["steps"] * job["batch"], global_batch=job["batch"], lr=_LR,
        warmup_samples=job["batch"], weight_decay=_WEIGHT_DECAY,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            model=job["model"], out=f"{folder}/run", shards=(ShardSource(path=job[f"shards_{words}"]),),
            precision=job["precision"], text_buckets=buckets, workers=1, log_every_steps=job["steps"],
            checkpoint_minutes=1e6, phase=(phase,),
        )  # fmt: skip
        train.run(settings, seed=0, progress=line_came)
    return _per_sample(job, seen[-2], seen[-1])


def _per_sample(job: Job, began: tuple[float, float], ended: tuple[float, float]) -> Measured:
    samples = job["steps"] * job["batch"]
    cpu_s, wall_s = (end - begin for begin, end in zip(began, ended, strict=True))
    return {"cpu_ms": 1000 * cpu_s / samples, "wall_ms": 1000 * wall_s / samples}


CONTENDERS: dict[str, Callable[[Job], Measured]] = {
    "open_clip": open_clip,
    _FULL: clip_pipe,
    _BUCKETS["web"]: lambda job: clip_pipe(job, (16, 32), "web"),
    _BUCKETS["photo"]: lambda job: clip_pipe(job, (16, 32), "photo"),
}


def parts(job: Job) -> Measured:
    """Milliseconds of CPU a step, of pieces of the step on their own; our whole step is in `top`."""
    import torch

    from pretrain.loop import optim
    from pretrain.loop.settings import Phase
    from pretrain.model import encoder as towers
    from pretrain.objective.base import Comm, Dims, Features
    from pretrain.objective.infonce import InfoNCE
    from tests.bench.open_clip_trainer import import_open_clip

    encoder, batch = towers.build(job["model"]), job["batch"]
    image = torch.randint(0, 255, (batch, encoder.image_size, encoder.image_size, 3)).to(
        torch.uint8
    )
    text = encoder.tokenize(pairs.texts("web", batch))
    bf16 = job["precision"] == "bf16"

    def forward() -> tuple[Any, Any]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return encoder.encode_image(image), encoder.encode_text(text)

    def clear() -> None:
        for parameter in encoder.parameters():
            parameter.grad = None

    def backward() -> None:
        sum(rows.float().sum() for rows in forward()).backward()  # type: ignore[union-attr]

    def whole() -> None:
        backward()
        clear()

    features = [rows.detach().float() for rows in forward()]
    term = InfoNCE()
    term.setup(Dims(encoder.embed_dim, 14.3))
    their_loss = import_open_clip().ClipLoss()

    def ours() -> None:
        rows = [one.clone().requires_grad_() for one in features]
        term(Features({"image:pooled": rows[0], "text:pooled": rows[1]}), Comm(), 0)[0].backward()

    def theirs() -> None:
        rows = [one.clone().requires_grad_() for one in features]
        unit = [torch.nn.functional.normalize(one, dim=-1) for one in rows]
        their_loss(unit[0], unit[1], torch.tensor(14.3, requires_grad=True)).backward()

    found = {"towers, forward": _ms(job, forward), "towers, forward and backward": _ms(job, whole)}
    found |= {"our loss": _ms(job, ours), "open_clip's loss": _ms(job, theirs)}
    backward()
    phase = Phase(samples=1, global_batch=batch)
    fused = optim.adamw(phase, [encoder, term])
    named = list(encoder.parameters())
    plain = torch.optim.AdamW(
        named, lr=_LR, betas=(0.9, 0.98), eps=1e-6, weight_decay=_WEIGHT_DECAY
    )
    found |= {"our AdamW": _ms(job, fused.step), "open_clip's AdamW": _ms(job, plain.step)}
    every = [p for p in encoder.parameters() if p.grad is not None]
    found["gradient norms, once"] = _ms(job, lambda: optim.grad_norm(every))
    return found


def _ms(job: Job, work: Callable[[], Any]) -> float:
    work()
    began_s = time.process_time()
    for _ in range(job["steps"]):
        work()
    return 1000 * (time.process_time() - began_s) / job["steps"]


def top(job: Job) -> Measured:
    """Our whole step under Python's profiler: the functions that take most time themselves."""
    import cProfile
    import pstats

    profiler = cProfile.Profile(time.process_time)
    clip_pipe(job, profiler=profiler)
    stats = pstats.Stats(profiler)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])[:25]  # type: ignore[attr-defined]
    steps = job["steps"]
    return {
        f"{Path(file).name}:{line} {name}": [round(1000 * own_s / steps, 3), calls / steps]
        for (file, line, name), (_, calls, own_s, *_) in rows
    }


def profile(job: Job, model: str) -> None:
    """Print what our step costs beyond its towers, loss and AdamW, and open_clip's beside it."""
    found = fresh(__file__, "parts", job)
    steps = {
        name: fresh(__file__, name, job)["cpu_ms"] * job["batch"] for name in ("open_clip", _FULL)
    }
    print(f"\n{model}, batch of {job['batch']}, {job['precision']}: ms CPU a step")
    for name, took in found.items():
        print(f"  {name:32s}{took:10.2f}")
    towers_ms = found["towers, forward and backward"]
    for name, own in (("open_clip", "open_clip's"), (_FULL, "our")):
        known = towers_ms + found[f"{own} loss"] + found[f"{own} AdamW"]
        print(
            f"  {name + ', whole step':32s}{steps[name]:10.2f}   beyond these {steps[name] - known:+.2f}"
        )
    print("  functions by their own time (ms a step, calls a step)")
    for name, (own_ms, calls) in fresh(__file__, "top", job).items():
        print(f"    {own_ms:9.3f} {calls:9.1f}  {name}")


def compare(job: Job, given: argparse.Namespace, model: str) -> None:
    rounds = Rounds(f"{model}, batch of {job['batch']}, {job['precision']}, {job['steps']} steps")
    for _ in range(given.rounds):
        for name in CONTENDERS:
            rounds.add(name, fresh(__file__, name, job))
    rounds.show()
    rounds.goal(_FULL, "open_clip", 1.0)
    for name in _BUCKETS.values():
        rounds.goal(name, "open_clip", 1.3)


def shards_of(side_px: int, batch: int, folder: Path) -> dict[str, str]:
    """Pictures already as small as the model's, with either kind of captions."""
    bodies = list(pairs.photographs(max(8 * batch, 64), side_px, square=True))
    return {
        f"shards_{words}": pairs.write(
            zip(bodies, pairs.texts(words, len(bodies)), strict=True),
            folder / f"{words}-{side_px}",
            _SHARDS,
        )
        for words in _BUCKETS
    }


def run(given: argparse.Namespace, folder: Path) -> None:
    from pretrain.model.encoder import import_open_clip

    for wanted in given.models:
        model, _, batch = wanted.partition(":")
        config = import_open_clip().get_model_config(model.partition("@")[0])
        side_px = config["vision_cfg"].get("image_size", 224)
        rows = int(batch or 32)
        steps = given.steps or max(4, math.ceil(800 * (64 / side_px) ** 2 / rows))
        shards = shards_of(side_px, rows, folder)
        for precision in given.precision:
            job = {
                "model": made_model(model, folder), "batch": rows, "steps": steps, "precision": precision,
                **shards,
            }  # fmt: skip
            if given.profile:
                profile(job, model)
            else:
                compare(job, given, model)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="*", default=["vit_tiny_64:32", "vit_tiny_64@77:32", "ViT-B-32:16"],
        help="NAME:BATCH, or NAME@TOKENS:BATCH for another text length",
    )  # fmt: skip
    parser.add_argument(
        "--precision", nargs="*", default=["fp32", "bf16"], choices=["fp32", "bf16"]
    )
    parser.add_argument("--steps", type=int, default=0, help="measured in a round; 0: by the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="where our step's time goes")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--job", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        work = {**CONTENDERS, "parts": parts, "top": top}[given.one]
        print(json.dumps(work(json.loads(given.job))))
        return
    with tempfile.TemporaryDirectory() as name:
        run(given, Path(name))


if __name__ == "__main__":
    main()
