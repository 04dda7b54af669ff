"""What a training run is told: one TrainSettings with its Phases. No torch is imported here.

`pipelines.recipe` fills these from TOML, with components still named; `pipelines.launch` replaces
the names by built components (views, tweaks, terms) in each rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

LOGGERS = ("tensorboard", "wandb")
_LEAST_OF_WARMUP = 0.01  # a phase with less of its warm-up has practically no learning rate


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """One shard set in the mixture. ``weight`` is its relative share of samples drawn."""

    path: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """Columns of a table, joined to samples by uid when they are read; the tars stay as they are.

    ``use`` says what they are: "captions" (text, or a list of texts or of objects with a ``text``:
    added to the sample's own), "caption" (takes the alt-text's place), "keep" (bool: samples that it
    refuses leave the stream) or "features" (a list of numbers of one length: ``stored:<name>``).
    """

    path: str  # a parquet file, a folder of them, or a glob; each with a column ``uid``
    use: str
    column: str = ""  # empty: the name that ``use`` has
    name: str = ""  # of features; empty: the column's
    missing: str = (
        "keep"  # what becomes of samples it has no row for: "keep" (as they are) or "drop"
    )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training with fixed resolution, views, objective and optimiser settings."""

    samples: int  # samples_seen at which the phase ends, counted from its start
    global_batch: int  # over all ranks
    micro_batch: int = 0  # rows of a rank in one forward; 0: all of them. Fewer: exact accumulation
    lr: float = 5e-4
    lr_end: float = 0.0
    warmup_samples: int = 0
    weight_decay: float = 0.2  # on matrices only: none on scales, norms, biases, embeddings
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    grad_clip_norm: float = 0.0  # 0 means no clipping
    view: tuple[Any, ...] = ()  # empty: `crop` and `caption_mix` with their defaults
    tweak: tuple[Any, ...] = ()
    objective: tuple[Any, ...] = ()  # components with `weight`; empty: `infonce`


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A whole run. Progress is counted in samples_seen, never in epochs."""

    model: str  # an open_clip name, or one of pretrain/model/configs
    out: str
    shards: tuple[ShardSource, ...] = ()  # empty: the recipe's curate.shards
    pretrained: str = ""  # path of open_clip weights to start from; empty: random
    precision: str = "bf16"  # bf16 (autocast) or fp32
    workers: int = 1  # loader processes per rank; 0 decodes in the rank itself
    sidecar: tuple[Sidecar, ...] = ()
    text_buckets: tuple[int, ...] = (
        16,
        32,
    )  # lengths that captions are padded to, where exact; empty: full
    augment: str = (
        "worker"  # where pictures are cropped: "worker", or "device" (decoded pixels travel)
    )
    decode: str = "worker"  # where plain JPEGs are decoded: "worker", or "device" (NVJPEG; with augment there)
    cache: str = (
        ""  # folder for copies of remote shards and indexes; empty: the user's cache folder
    )
    cache_gb: float = 100.0  # of remote shards kept there at most
    parallel: str = "auto"  # "ddp", "fsdp", or by the number of parameters
    compile: Literal["auto", "on", "off"] = "auto"  # "on", "off", or on where there is a GPU
    activation_checkpointing: bool = False
    ema_decay: float = 0.0  # of an average of the weights, per step; 0: none is kept
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    keep_every_samples: int = 0  # checkpoints at multiples of it are never deleted; 0: none
    loggers: tuple[str, ...] = ()  # besides metrics.jsonl: "tensorboard", "wandb"
    log_every_steps: int = 10
    max_bad_frac: float = 0.01  # share of undecodable samples past which the run stops
    stuck_steps: int = (
        2_000  # steps (and twice the warm-up) at the loss of guessing until it stops; 0: never
    )
    phase: tuple[Phase, ...] = ()


def check(settings: TrainSettings, ranks: int = 0) -> None:
    """Raise ValueError ("where: what. hint: ...") for values no run can use. Reads nothing.

    With ``ranks``, also for batches that don't divide over so many.
    """
    if not settings.phase or not settings.shards:
        raise ValueError(
            "train: no phase or no shards. hint: add a [[train.phase]], and `shards` or a [curate] table"
        )
    _one_of("train", settings, "precision", "bf16", "fp32")
    _one_of("train", settings, "augment", "worker", "device")
    _one_of("train", settings, "decode", "worker", "device")
    if settings.decode == "device" and settings.augment != "device":
        raise ValueError(
            'train.decode = "device" with augment = "worker": what is decoded on the device is cropped there. '
            'hint: augment = "device"'
        )
    _one_of("train", settings, "parallel", "auto", "ddp", "fsdp")
    _one_of("train", settings, "compile", "auto", "on", "off")
    for logger in settings.loggers:
        if logger not in LOGGERS:
            raise ValueError(f"train.loggers = {logger!r}. hint: any of {', '.join(LOGGERS)}")
    buckets = settings.text_buckets
    if list(buckets) != sorted(set(buckets)) or any(length < 2 for length in buckets):
        raise ValueError(
            f"train.text_buckets = {list(buckets)}. hint: lengths in tokens, rising, of 2 or more; [] pads to the full length"
        )
    at_least_0 = ("workers", "checkpoint_minutes", "keep_every_samples", "stuck_steps")
    _in_range("train", settings, "at least 0", 0, *at_least_0)
    _in_range("train", settings, "at least 1", 1, "keep_checkpoints", "log_every_steps")
    _in_range("train", settings, "a share between 0 and 1", 0, "max_bad_frac", high=1)
    _in_range("train", settings, "gigabytes, above 0", 1e-6, "cache_gb")
    _in_range("train", settings, "from 0 (none) to just below 1", 0, "ema_decay", high=0.99999999)
    _check_sidecars(settings.sidecar)
    for number, phase in enumerate(settings.phase):
        _check_phase(f"train.phase.{number}", phase)
    if ranks:
        check_batches(settings, ranks)


def check_buckets(settings: TrainSettings, context_length: int) -> None:
    """Raise ValueError for a text bucket that no caption can reach; the default's are passed over."""
    buckets = settings.text_buckets
    longer = [length for length in buckets if length > context_length]
    if longer and buckets != TrainSettings.text_buckets:
        fitting = [length for length in buckets if length < context_length]
        raise ValueError(
            f"train.text_buckets = {list(buckets)}: {longer[0]} is more than the {context_length} tokens that "
            f"{settings.model} reads, so no caption is ever padded to it. hint: {fitting}; the full length need not be named"
        )


def doubts(settings: TrainSettings) -> list[str]:
    """What is legal and works but is hardly meant, as "where: what. hint: ...", to be told before a run."""
    found: list[str] = []
    for number, phase in enumerate(settings.phase):
        where, warmup = f"train.phase.{number}", phase.warmup_samples
        end = _end_of(phase)
        if not phase.lr or warmup < phase.samples or (warmup <= end and _goes_on(settings, number)):
            continue
        share = min(end, warmup // phase.global_batch * phase.global_batch) / warmup
        most = (
            f"lr {phase.lr:g} is reached with the last step only"
            if share == 1
            else f"lr rises to {phase.lr * share:.3g} and never to {phase.lr:g}"
        )
        found.append(
            f"{where}: a warm-up of {warmup:,} samples in a phase of {phase.samples:,}: {most}. "
            f"hint: warmup_samples well below samples, e.g. {phase.samples // 10:,}"
        )
    return found


def _end_of(phase: Phase) -> int:
    """Its samples in whole batches."""
    return math.ceil(phase.samples / phase.global_batch) * phase.global_batch


def _goes_on(settings: TrainSettings, number: int) -> bool:
    """Whether another phase follows, so that one of warm-up alone can be meant."""
    return number + 1 < len(settings.phase)


def check_batches(settings: TrainSettings, ranks: int) -> None:
    """Raise ValueError, with the nearest that do, for batches that don't divide over so many ranks."""
    for number, phase in enumerate(settings.phase):
        _check_batch(f"train.phase.{number}", phase, ranks)


def _check_phase(where: str, phase: Phase) -> None:
    _in_range(where, phase, "at least 1", 1, "samples", "global_batch")
    at_least_0 = ("lr", "lr_end", "warmup_samples", "weight_decay", "eps", "grad_clip_norm")
    _in_range(where, phase, "at least 0", 0, *at_least_0, "micro_batch")
    _in_range(where, phase, "from 0 to just below 1", 0, "beta1", "beta2", high=0.999999)
    end = _end_of(phase)
    if end < _LEAST_OF_WARMUP * phase.warmup_samples and phase.lr:
        raise ValueError(
            f"{where}.warmup_samples = {phase.warmup_samples:,} in a phase of {phase.samples:,} samples: lr stays below "
            f"{phase.lr * end / phase.warmup_samples:.2g} of {phase.lr:g}, and nothing is learned. "
            f"hint: it is counted in samples; e.g. {phase.samples // 10:,}, or 0 for a trial"
        )


def _check_batch(where: str, phase: Phase, ranks: int) -> None:
    local, rest = divmod(phase.global_batch, ranks)
    if rest:
        legal = " or ".join(str(rows * ranks) for rows in (local, local + 1) if rows)
        raise ValueError(
            f"{where}.global_batch = {phase.global_batch} does not divide over {ranks} ranks, and every rank must "
            f"have the same number of samples. hint: use a multiple of {ranks}, e.g. {legal}"
        )
    if phase.micro_batch and local % min(phase.micro_batch, local):
        divisors = [n for n in range(1, local + 1) if local % n == 0]
        nearest = min(divisors, key=lambda n: (abs(n - phase.micro_batch), -n))
        raise ValueError(
            f"{where}.micro_batch = {phase.micro_batch} does not divide the {local} rows that each of {ranks} ranks has. "
            f"hint: e.g. {nearest}"
        )


def _check_sidecars(sidecars: tuple[Sidecar, ...]) -> None:
    names: set[str] = set()
    for number, sidecar in enumerate(sidecars):
        where = f"train.sidecar.{number}"
        _one_of(where, sidecar, "use", "captions", "caption", "keep", "features")
        _one_of(where, sidecar, "missing", "keep", "drop")
        if not sidecar.path:
            raise ValueError(f"{where}.path is empty. hint: a parquet file, a folder of them, or a glob")  # fmt: skip
        if sidecar.use != "features" and sidecar.name:
            raise ValueError(
                f'{where}.name = {sidecar.name!r} with use = {sidecar.use!r}. hint: only use = "features" has a name'
            )
        if sidecar.use == "features":
            name = sidecar.name or sidecar.column or sidecar.use
            if name in names:
                raise ValueError(f"{where}: two sidecars give features {name!r}. hint: set `name` of one")  # fmt: skip
            names.add(name)


def _one_of(where: str, thing: Any, name: str, *legal: str) -> None:
    if getattr(thing, name) not in legal:
        words = [f'"{value}"' for value in legal]
        hint = f"{', '.join(words[:-1])} or {words[-1]}"
        raise ValueError(f"{where}.{name} = {getattr(thing, name)!r}. hint: {hint}")


def _in_range(
    where: str, thing: Any, hint: str, low: float, *names: str, high: float = math.inf
) -> None:
    for name in names:
        value = getattr(thing, name)
        if not low <= value <= high:
            raise ValueError(f"{where}.{name} = {value}. hint: {hint}")
