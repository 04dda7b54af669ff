"""What a training is expected to take, before any work: arithmetic, time, memory, loaders, days. No torch.

Time is arithmetic over a share of the chip's peak, which is an assumption: published runs reach 11 to 16 %
of an A100's, this trainer aims at 40 % and more. Memory is a formula (`pretrain/loop/memory.py`), good to
some 20 %.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.contract import storage
from pipelines import costs, preflight
from pipelines.errors import RecipeError, split_hint
from pretrain.loop import flops, gpus, memory
from pretrain.loop.flops import Towers
from pretrain.loop.gpus import Gpu
from pretrain.loop.settings import Phase, TrainSettings

MFU, MFU_LOW, MFU_HIGH = 0.40, 0.25, 0.50  # of the data sheet's peak
# CPU per sample of 256 px: decoded and cropped, decoded only, neither.
DECODE_MS, DECODE_ONLY_MS, READ_MS = 0.7, 0.5, 0.1
_FREE_FRAC = 0.95  # of a GPU's memory may be planned with
_PRETRAIN = Path(__file__).resolve().parent.parent / "pretrain"


@dataclass(frozen=True)
class Planned:
    """One phase on given GPUs."""

    phase: Phase
    towers: Towers
    images: int
    texts: int
    accumulated: bool
    checkpointed: bool

    @property
    def samples(self) -> int:
        return math.ceil(self.phase.samples / self.phase.global_batch) * self.phase.global_batch

    @property
    def pair_flops(self) -> float:
        """What is executed for a pair, with what is computed again."""
        return self.towers.executed_flops(
            self.images, self.texts, accumulated=self.accumulated, checkpointed=self.checkpointed
        )


def words(settings: TrainSettings, gpu: str = "", gpu_count: int = 1) -> str:
    """What ``clip-pipe plan`` says of [train]; lines of text.

    Raises RecipeError for a GPU that is not known, or batches that don't divide over so many.
    """
    chip = _chip(gpu)
    if gpu_count > 1:
        preflight.check_ranks(settings, gpu_count)
    preflight.check_buckets(settings)
    config = config_of(settings.model)
    towers = flops.of_config(config) if config else None
    if towers is None:
        return f"cost      of {settings.model} is not known: formulas are for open_clip's own two transformers"
    found = [f"model     {towers.parameters / 1e6:,.1f} M parameters"]
    phases = list(_phases(settings, towers, gpu_count))
    for number, planned in enumerate(phases):
        found += _arithmetic(settings, number, planned)
    if chip is None:
        found.append(
            "time      give --gpu NAME --gpus N, e.g. `--gpu h200 --gpus 8`, for days and memory"
        )
        return "\n".join(found)
    peak = chip.peak_flops(settings.precision)
    found.append(
        f"gpus      {gpu_count} x {chip.name}, {peak / 1e12:,.0f} TFLOP/s each and {chip.sheet_gb:g} GB by its data sheet "
        f"({costs.memory(chip.memory_bytes)} for PyTorch); "
        f"time at {MFU:.0%} of that (at {MFU_LOW:.0%} to {MFU_HIGH:.0%})"
    )
    total_s = 0.0
    for number, planned in enumerate(phases):
        found += _on_gpus(settings, number, planned, chip, gpu_count)
        total_s += planned.samples * planned.pair_flops / (peak * gpu_count * MFU)
    if len(phases) > 1:
        found.append(f"in all    {_range(total_s)}")
    return "\n".join(found)


def gpu_seconds(settings: TrainSettings, gpu: str, gpu_count: int = 8) -> float | None:
    """Seconds of one GPU for all phases at ``MFU``; None for a model whose arithmetic is not known.

    ``gpu_count``: how many share a global batch, where that decides what is computed twice; where the batches
    don't divide over them, one has all.
    """
    chip, config = _chip(gpu), config_of(settings.model)
    towers = flops.of_config(config) if config else None
    if chip is None or towers is None:
        return None
    count = 1 if any(phase.global_batch % gpu_count for phase in settings.phase) else gpu_count
    work = sum(one.samples * one.pair_flops for one in _phases(settings, towers, count))
    return work / (chip.peak_flops(settings.precision) * MFU)


def score_seconds(model: str, gpu: str) -> float | None:
    """Seconds of one GPU to run both towers of a model over one pair; None where its arithmetic is not known."""
    chip, config = _chip(gpu), config_of(model)
    towers = flops.of_config(config) if config else None
    if chip is None or towers is None:
        return None
    forward = towers.image.forward_flops + towers.text.forward_flops
    return forward / (chip.peak_flops("bf16") * MFU)


def config_of(model: str) -> dict[str, Any] | None:
    """A model's configuration: ours, open_clip's (where that is installed), or a file; None for others."""
    folders = [_PRETRAIN / "model" / "configs"]
    spec = importlib.util.find_spec("open_clip")
    folders += [Path(spec.origin).parent / "model_configs"] if spec and spec.origin else []
    paths = [str(folder / f"{model}.json") for folder in folders]
    for path in [storage.absolute(model)] if model.endswith(".json") else paths:
        if storage.exists(path):
            try:
                return dict(json.loads(storage.read_text(path)))
            except ValueError as fault:
                raise RecipeError(
                    "train.model", f"{path}: {fault}", "JSON in open_clip's format"
                ) from fault
    return None


def _phases(settings: TrainSettings, towers: Towers, gpu_count: int) -> Iterator[Planned]:
    """Phases with their tweaks. A resolution stays; what else a tweak does ends with its phase."""
    for phase in settings.phase:
        shaped = towers
        for tweak in phase.tweak:
            shaped = shaped.tweaked(tweak.use, tweak.options)
        towers = towers.at(image_px=shaped.image.image_px)
        kinds = [_tower_of(view.use) for view in phase.view] or ["image", "text"]
        local = phase.global_batch // gpu_count
        accumulated = 0 < phase.micro_batch < local
        yield Planned(
            phase, shaped, kinds.count("image"), kinds.count("text"), accumulated, settings.activation_checkpointing
        )  # fmt: skip


def _arithmetic(settings: TrainSettings, number: int, planned: Planned) -> list[str]:
    towers, pair = planned.towers, planned.pair_flops
    line = (
        f"phase {number:<3d} {pair / 1e9:,.1f} GFLOP a pair ({towers.image.image_px} px, {towers.image.tokens} + "
        f"{towers.text.tokens} tokens), {pair * planned.samples:.2g} FLOP"
    )
    again = [
        name
        for name, does in (
            ("accumulation", planned.accumulated),
            ("checkpointing", planned.checkpointed),
        )
        if does
    ]
    line += f", {' and '.join(again)} included" if again else ""
    short = [length for length in settings.text_buckets if length < towers.text.tokens]
    if short:
        less = replace(planned, towers=towers.at(text_tokens=max(short))).pair_flops
        line += f"; {less / 1e9:,.1f} where captions fit {max(short)}"
    return [line]


def _on_gpus(
    settings: TrainSettings, number: int, planned: Planned, chip: Gpu, gpu_count: int
) -> list[str]:
    phase = planned.phase
    local = phase.global_batch // gpu_count
    rows = min(phase.micro_batch or local, local)
    peak = chip.peak_flops(settings.precision) * gpu_count
    step_s = phase.global_batch * planned.pair_flops / (peak * MFU)
    rate = phase.global_batch / step_s
    head = f"phase {number:<3d}"
    blank = " " * len(head)
    each_ms = DECODE_ONLY_MS if settings.augment == "device" else DECODE_MS
    each_ms = READ_MS if settings.decode == "device" else each_ms
    needed = rate / gpu_count * each_ms / 1e3
    loaders = f"{needed:.1f} cores a GPU at {each_ms} ms a sample of 256 px, {math.ceil(needed * gpu_count)} in all"
    if settings.workers < needed:
        loaders += f"; train.workers = {settings.workers}: hint: at least {math.ceil(needed * 1.2)}"
    return [
        f"{head} local batch {local:,}" + (f", micro batch {rows:,}" if rows < local else "")
        + f": step {_step(step_s)}, {rate:,.0f} samples/s, {_range(planned.samples / rate)}",
        f"{blank} memory {_fit(settings, planned, chip, rows, local, gpu_count)}",
        f"{blank} loading {loaders}",
    ]  # fmt: skip


def _fit(
    settings: TrainSettings, planned: Planned, chip: Gpu, rows: int, local: int, gpu_count: int
) -> str:
    parallel = settings.parallel
    sharded = parallel == "fsdp" or (
        parallel == "auto" and planned.towers.parameters > memory.FSDP_PARAMETERS
    )
    taken, less = (
        memory.of(
            planned.towers, rows=rows, local_batch=local, global_batch=planned.phase.global_batch, images=planned.images,
            texts=planned.texts, bf16=settings.precision == "bf16", checkpointed=checkpointed,
            ema=settings.ema_decay > 0, shards=gpu_count if sharded else 1,
        )
        for checkpointed in (planned.checkpointed, True)
    )  # fmt: skip
    told = (
        f"{costs.memory(taken.total)} of {costs.memory(chip.memory_bytes)} (state {costs.memory(taken.state)}, "
        f"activations {costs.memory(taken.activations)})"
    )
    most = taken.most_rows(_FREE_FRAC * chip.memory_bytes)
    if rows <= most:
        return f"{told}: fits"
    fitting = max((n for n in range(1, min(most, local) + 1) if local % n == 0), default=0)
    hint = (
        f"micro_batch = {fitting}"
        if fitting
        else 'a larger GPU, more of them with parallel = "fsdp"'
    )
    helps = rows <= less.most_rows(_FREE_FRAC * chip.memory_bytes)
    more = ", or activation_checkpointing = true" if helps else ""
    return f"{told}: does not fit. hint: {hint}{more}"


def _range(seconds: float) -> str:
    """Time at the assumed MFU, and at the ends of its range."""
    best, worst = (costs.duration(seconds * MFU / share) for share in (MFU_HIGH, MFU_LOW))
    return f"{costs.duration(seconds)} ({best.removeprefix('about ')} to {worst.removeprefix('about ')})"


def _step(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _tower_of(view: str) -> str:
    """The tower of a view that comes along, from its source text; "image" for code from elsewhere."""
    path = _PRETRAIN / "stream" / "view" / f"{view}.py"
    found = re.search(r'tower: ClassVar\[.*\] = "(\w+)"', path.read_text() if path.exists() else "")
    return found[1] if found else "image"


def _chip(gpu: str) -> Gpu | None:
    try:
        return gpus.named(gpu) if gpu else None
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("--gpu", what, hint) from fault
