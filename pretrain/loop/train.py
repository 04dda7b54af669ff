"""The training loop: shards to weights. Read this page to know what happens in a run.

Progress is counted in samples seen by all ranks. Every draw is a function of (seed, position of the
sample, purpose), so a run that was killed and resumed, at any point and on any number of ranks, sees
the same pictures, crops, captions and dropped patches as an undisturbed one. Layers that draw for
themselves (dropout) are keyed by the first row of a micro batch, so these are the same where micro
batches are. The step is in `step.py`, its gradient in `gradients.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pretrain.loop.interrupt import Interrupt, caught
from pretrain.loop.job import Job, TrainingStopped, phase_end, refuse_unless
from pretrain.loop.lock import Alone, hold
from pretrain.loop.meter import Meter
from pretrain.loop.settings import Phase, TrainSettings, check
from pretrain.loop.step import Step, brought
from pretrain.loop.stuck import Stuck
from pretrain.loop.unfinite import Recent
from pretrain.loop.world import Poll, join
from pretrain.objective.base import Metrics
from pretrain.stream.batch import Batch, LocalBatches, loader
from pretrain.stream.device_decode import Bring, nvjpeg
from pretrain.stream.encoded import Decoder


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
    allow_changes: Sequence[str] = (),
    alone: Alone | None = None,
) -> TrainResult:
    """Train every phase in turn; called once in each rank.

    ``data_hash`` is the shards' manifest hash, kept in every checkpoint. ``progress`` gets each line
    of metrics.jsonl, on the first rank. With ``resume``, goes on from the newest whole checkpoint in
    ``settings.out``, or begins where there is none. ``stop_after_samples`` stops as SIGTERM does, and
    so does ``stop_asked`` once it says so on the first rank: for runs that no signal reaches.
    ``allow_changes`` names settings ("phase.0.lr", "phase.0", "data") that may have changed since. ``alone`` holds a folder behind a URL.

    Raises ValueError (with a hint) for settings, shards or a folder that can't be used,
    TrainingStopped for a loss that is not finite or too many bad samples.
    """
    check(settings)
    world = join()
    check(settings, world.size)
    decoder = nvjpeg(world.device) if settings.decode == "device" else None
    with caught() as interrupt, ExitStack() as ending:
        held = ending.enter_context(hold(settings.out, world, alone))
        job = Job(
            settings,
            world,
            seed=seed,
            data_hash=data_hash,
            recipe_text=recipe_text,
            again=resume,
            progress=progress,
            allow_changes=allow_changes,
            held=held,
        )
        if world.is_first:
            job.log.follow(settings.loggers, job.cursor.samples_seen, job.described, resumed=resume)
        ending.push(job.log)
        ending.callback(job.writer.settle)  # what is being written needs the log and the folder
        first = job.cursor.phase
        for phase in settings.phase[:first]:
            job.shape(phase)
        stopped = False
        for number in range(first, len(settings.phase)):
            phase = job.enter(number)
            stopped = _train_phase(job, phase, decoder, interrupt, stop_after_samples, stop_asked)
            path = job.save()
            if stopped:
                break
        job.refuse_unput()
        cursor = job.cursor
        last = number == len(settings.phase) - 1 and cursor.samples_seen >= phase_end(cursor, phase)
        world.gather(None)  # no rank leaves before the checkpoint is there
        told = stopped and not last, interrupt.number, cursor.bad
        return TrainResult(path, cursor.samples_seen, job.log.path, *told)


def _train_phase(
    job: Job,
    phase: Phase,
    decoder: Decoder | None,
    interrupt: Interrupt,
    stop_after_samples: int | None,
    stop_asked: Callable[[], bool] | None,
) -> bool:
    """Train to the end of the phase; True if it was told to stop before."""
    cursor, world = job.cursor, job.world
    end = phase_end(cursor, phase)
    batches = LocalBatches(cursor.samples_seen, end, phase.global_batch, world.rank, world.size)
    made = loader(job.stream, batches, job.settings.workers, pin=world.device.type == "cuda")
    # Closed on a fault too: a traceback would keep the loader's processes alive, and they this one.
    bring = Bring(job.stream, world.device, decoder)
    with closing(brought(made, world.device, bring)) as coming:
        return _steps(job, phase, coming, end, interrupt, stop_after_samples, stop_asked)


def _steps(
    job: Job,
    phase: Phase,
    coming: Iterator[Batch],
    end: int,
    interrupt: Interrupt,
    stop_after_samples: int | None,
    stop_asked: Callable[[], bool] | None,
) -> bool:
    """A step for each batch that comes; True if it was told to stop before the last."""
    cursor, world = job.cursor, job.world
    meter, stuck = Meter.of(job, phase), Stuck.of(job, phase)
    step_once, poll = Step(job, phase), Poll(world)
    job.recent = Recent(step_once.local_batch, job.settings.log_every_steps)
    for batch in coming:
        if batch.fatal:
            raise TrainingStopped(batch.fatal)
        meter.batch_came(batch)
        step, last = cursor.step + 1, cursor.samples_seen + phase.global_batch >= end
        logged = step == 1 or step % job.settings.log_every_steps == 0 or last
        loss, figures, lr = step_once(batch, logged)
        job.recent.add(step, loss, lr, batch.keys)
        if logged:
            _log(job, loss, figures, lr, meter, stuck)
        reached = stop_after_samples is not None and cursor.samples_seen >= stop_after_samples
        told = stop_asked is not None and world.is_first and stop_asked()
        stop, save = poll.ask(interrupt.asked or told, job.is_due())
        if stop or reached:
            poll.end()
            return True
        if save or job.is_milestone():
            job.save(wait=False)
        meter.step_done()
    poll.end()
    return False


def _log(job: Job, loss: Tensor, figures: Metrics, lr: float, meter: Meter, stuck: Stuck) -> None:
    """One line of metrics.jsonl, means over ranks. The only place that waits for the device."""
    cursor, world = job.cursor, job.world
    names = list(figures)
    values = world.mean([loss, *(figures[name] for name in names)])
    refuse_unless(bool(torch.tensor(values[0]).isfinite()), job, "the loss is")
    job.sum_bad()
    scale = job.logit_scale()
    line = {
        "step": cursor.step,
        "samples_seen": cursor.samples_seen,
        "phase": cursor.phase,
        "loss": values[0],
        "logit_scale": None if scale is None else float(scale),
        "lr": lr,
        **meter.read(cursor.samples_seen),
        "bad_samples": sum(cursor.bad.values()),
        **dict(zip(names, values[1:], strict=True)),
    }
    job.recent.line = dict(line)
    if cursor.bad:
        line |= {"bad_by_kind": cursor.bad, "bad_examples": job.replaced.examples}
    if world.is_first:
        job.log.write(line)
        if job.progress:
            job.progress({**line, "checkpoint_in_s": job.due_in_s()})
    _refuse_bad_data(job)
    if fault := stuck.fault(cursor.step, values[0]):
        raise TrainingStopped(fault)


def _refuse_bad_data(job: Job) -> None:
    """Raise TrainingStopped where too many samples had to be replaced; on all ranks alike."""
    cursor = job.cursor
    if fault := job.bad_share.fault(cursor.samples_seen, sum(cursor.bad.values())):
        examples = job.replaced.examples
        example = next(
            (examples[k] for k, _ in Counter(cursor.bad).most_common() if k in examples), ""
        )
        raise TrainingStopped(
            f"{fault} (in all: {cursor.bad}), more than max_bad_frac = {job.settings.max_bad_frac}; "
            f"for example {example}. hint: repair the shards, or raise train.max_bad_frac"
        )
