"""The training loop: shards to weights. Read this page to know what happens in a run.

Progress is counted in samples seen by all ranks. Every draw is a function of (seed, position of the
sample, purpose), so a run that was killed and resumed, at any point and on any number of ranks, sees
the same pictures, crops and captions as an undisturbed one. Layers that draw for themselves (dropout,
open_clip's patch dropout) are keyed by rank, so these are the same on an equal number of ranks only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pretrain.loop import optim
from pretrain.loop.interrupt import Interrupt, caught
from pretrain.loop.job import Job, TrainingStopped, phase_end, refuse_unless
from pretrain.loop.schedule import lr_at
from pretrain.loop.settings import Phase, TrainSettings, check
from pretrain.loop.world import join
from pretrain.model.encoder import TOWERS
from pretrain.objective.base import Features, Metrics, Term
from pretrain.stream.batch import Batch, LocalBatches, loader
from pretrain.stream.order import integer

_ENOUGH_SAMPLES = 1000  # before so many are seen, max_bad_frac is taken of this number


@dataclass(frozen=True)
class TrainResult:
    """``interrupted``: stopped before the end, with a checkpoint to resume from."""

    checkpoint: str
    samples_seen: int
    metrics: str
    interrupted: bool = False
    signal_number: int = 0
    bad: dict[str, int] = field(default_factory=dict)


def run(
    settings: TrainSettings,
    *,
    seed: int,
    data_hash: str = "",
    recipe_text: str = "",
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
    stop_after_samples: int | None = None,
    stop_asked: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train every phase in turn; called once in each rank.

    ``data_hash`` is the shards' manifest hash, kept in every checkpoint. ``progress`` gets each line
    of metrics.jsonl, on the first rank. With ``resume``, goes on from the newest whole checkpoint in
    ``settings.out``, or begins where there is none. ``stop_after_samples`` stops as SIGTERM does, and
    so does ``stop_asked`` once it says so on the first rank: for runs that no signal reaches.

    Raises ValueError (with a hint) for settings, shards or a folder that can't be used,
    TrainingStopped for a loss that is not finite or too many bad samples.
    """
    check(settings)
    world = join()
    with caught() as interrupt:
        job = Job(
            settings,
            world,
            seed=seed,
            data_hash=data_hash,
            recipe_text=recipe_text,
            resume=resume,
            progress=progress,
        )
        first = job.cursor.phase
        for phase in settings.phase[:first]:
            job.shape(phase)
        stopped = False
        for number in range(first, len(settings.phase)):
            phase = job.enter(number)
            stopped = _train_phase(job, phase, interrupt, stop_after_samples, stop_asked)
            path = job.save()
            if stopped:
                break
        cursor = job.cursor
        last = number == len(settings.phase) - 1 and cursor.samples_seen >= phase_end(cursor, phase)
        world.gather(None)  # no rank leaves before the checkpoint is there
        return TrainResult(
            path,
            cursor.samples_seen,
            job.log.path,
            stopped and not last,
            interrupt.number,
            cursor.bad,
        )


def _train_phase(
    job: Job,
    phase: Phase,
    interrupt: Interrupt,
    stop_after_samples: int | None,
    stop_asked: Callable[[], bool] | None,
) -> bool:
    """Train to the end of the phase; True if it was told to stop before."""
    cursor, world = job.cursor, job.world
    end = phase_end(cursor, phase)
    batches = LocalBatches(cursor.samples_seen, end, phase.global_batch, world.rank, world.size)
    meter = _Meter(cursor.samples_seen)
    saved_at_s = time.monotonic()
    for batch in loader(job.stream, batches, job.settings.workers, pin=world.device.type == "cuda"):
        meter.batch_came()
        if batch.fatal:
            raise TrainingStopped(batch.fatal)
        step, last = cursor.step + 1, cursor.samples_seen + phase.global_batch >= end
        logged = step == 1 or step % job.settings.log_every_steps == 0 or last
        loss, figures, lr = _step(job, phase, batch, logged)
        if logged:
            _log(job, loss, figures, lr, meter)
        due = (
            world.is_first and time.monotonic() - saved_at_s > job.settings.checkpoint_minutes * 60
        )
        reached = stop_after_samples is not None and cursor.samples_seen >= stop_after_samples
        told = stop_asked is not None and world.is_first and stop_asked()
        stop, save = world.any(interrupt.asked or reached or told, due)
        if stop:
            return True
        if save:
            job.save()
            saved_at_s = time.monotonic()
        meter.step_done()
    return False


def _step(job: Job, phase: Phase, batch: Batch, logged: bool) -> tuple[Tensor, Metrics, float]:
    """One optimizer step. Returns this rank's loss, figures to log, and the learning rate."""
    cursor, world = job.cursor, job.world
    # Dropout and the like: a function of where in the stream this rank's rows begin.
    torch.manual_seed(integer(job.seed, "step", cursor.samples_seen, world.rank))
    with torch.autocast(
        world.device.type, torch.bfloat16, enabled=job.settings.precision == "bf16"
    ):
        features = Features(job.model(batch.to(world.device), job.towers_of))
    loss, figures = _objective(job, features)
    loss.backward()
    world.average_gradients(job.terms.parameters())
    for tower in TOWERS if logged else ():
        figures[f"grad_norm_{tower}"] = optim.grad_norm(
            p for _, p in job.encoder.tower_parameters(tower)
        )
    optim.clip_gradients(job.parameters(), phase.grad_clip_norm)
    cursor.step += 1
    cursor.samples_seen += phase.global_batch
    cursor.phase_samples += phase.global_batch
    lr = lr_at(phase, cursor.phase_samples)
    optim.set_lr(job.optimizer, lr)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    for term in job.terms:
        term.after_step()  # type: ignore[operator]
    job.count_bad(batch)
    return loss.detach(), figures, lr


def _objective(job: Job, features: Features) -> tuple[Tensor, Metrics]:
    """The weighted sum of all terms, and what they report; with several, each under its own name."""
    comm = job.world.comm()
    parts: list[Tensor] = []
    figures: Metrics = {}
    for number, (weight, term) in enumerate(zip(job.weights, job.terms, strict=True)):
        assert isinstance(term, Term)
        loss, reported = term(features, comm, job.cursor.step)
        parts.append(weight * loss)
        prefix = f"{type(term).__name__.lower()}.{number}." if len(job.weights) > 1 else ""
        figures |= {f"{prefix}{name}": figure for name, figure in reported.items()}
        if prefix:
            figures[f"{prefix}loss"] = loss.detach()
    return torch.stack(parts).sum(), figures


class _Meter:
    """Samples per second and the share of time spent waiting for data, since the last log line."""

    def __init__(self, samples_seen: int) -> None:
        self.restart(samples_seen)
        self.asked_s = self.began_s

    def restart(self, samples_seen: int) -> None:
        self.began_s, self.began_samples, self.waited_s = time.monotonic(), samples_seen, 0.0

    def batch_came(self) -> None:
        self.waited_s += time.monotonic() - self.asked_s

    def step_done(self) -> None:
        self.asked_s = time.monotonic()

    def read(self, samples_seen: int) -> tuple[float, float]:
        """(samples per second, share of time waited for data)."""
        passed_s = max(time.monotonic() - self.began_s, 1e-9)
        return (samples_seen - self.began_samples) / passed_s, min(self.waited_s / passed_s, 1.0)


def _log(job: Job, loss: Tensor, figures: Metrics, lr: float, meter: _Meter) -> None:
    """One line of metrics.jsonl, means over ranks. The only place that waits for the device."""
    cursor, world = job.cursor, job.world
    names = list(figures)
    values = world.mean([loss, *(figures[name] for name in names)])
    refuse_unless(bool(torch.tensor(values[0]).isfinite()), cursor.step)
    samples_per_s, wait_frac = meter.read(cursor.samples_seen)
    job.sum_bad()
    scale = job.logit_scale()
    line = {
        "step": cursor.step,
        "samples_seen": cursor.samples_seen,
        "phase": cursor.phase,
        "loss": values[0],
        "logit_scale": None if scale is None else float(scale),
        "lr": lr,
        "samples_per_s": round(samples_per_s, 2),
        "data_wait_frac": round(wait_frac, 4),
        "bad_samples": sum(cursor.bad.values()),
        **dict(zip(names, values[1:], strict=True)),
    }
    if world.is_first:
        job.log.write(line)
        if job.progress:
            job.progress(line)
    _refuse_bad_data(job)
    meter.restart(cursor.samples_seen)


def _refuse_bad_data(job: Job) -> None:
    """Raise TrainingStopped where too many samples had to be replaced; on all ranks alike."""
    bad, seen = sum(job.cursor.bad.values()), job.cursor.samples_seen
    if bad > job.settings.max_bad_frac * max(seen, _ENOUGH_SAMPLES):
        example = next((e for e in job.world.gather(job.bad_example) if e), "")
        raise TrainingStopped(
            f"{bad} of {seen} samples could not be used ({job.cursor.bad}), more than max_bad_frac = "
            f"{job.settings.max_bad_frac}; for example {example}. hint: repair the shards, or raise train.max_bad_frac"
        )
