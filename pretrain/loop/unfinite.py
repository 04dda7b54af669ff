"""What a run says when its loss or its weights are no longer finite: which step and batch, what to try, where to go on.

Losses stay on the device until a line is logged. Those of the steps since then are kept with their batches'
keys, so that the first that is not finite can be named, though no step waits for the device.
"""

from __future__ import annotations

import json
import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from curate.contract import storage
from pretrain.loop import checkpoint
from pretrain.loop.settings import Phase, TrainSettings

if TYPE_CHECKING:
    from pretrain.loop.job import Job

_MOST_KEYS = 200_000  # kept on a rank: some 12 MB
NAME = "not_finite.json"


@dataclass(frozen=True)
class _Done:
    step: int
    loss: Tensor  # this rank's
    lr: float
    keys: list[str]


class Recent:
    """The steps of late, on one rank. ``line``: the last logged one, whose loss was finite."""

    def __init__(self, local_batch: int, log_every_steps: int) -> None:
        kept = min(log_every_steps + 1, _MOST_KEYS // max(local_batch, 1))
        self._steps: deque[_Done] = deque(maxlen=max(kept, 2))
        self._added = 0
        self.line: dict[str, Any] = {}

    def add(self, step: int, loss: Tensor, lr: float, keys: list[str]) -> None:
        """Nothing is read of the loss yet."""
        self._added += 1
        self._steps.append(_Done(step, loss, lr, keys))

    def first(self) -> int:
        """The first step whose loss is not finite, 0 if there is none. Waits for the device."""
        return next((done.step for done in self._steps if not math.isfinite(done.loss)), 0)

    def at(self, step: int) -> _Done | None:
        return next((done for done in self._steps if done.step == step), None)

    def knows(self, step: int) -> bool:
        """Whether the steps before this one were finite for all that is kept: then it is the first."""
        return self._added <= (self._steps.maxlen or 0) or self.at(step - 1) is not None


def told(job: Job, what: str) -> str:
    """The message, after the batch's keys were written to OUT/not_finite.json. All ranks call it together.

    ``what`` is not finite: "the loss is" or "the weights are".
    """
    world, cursor, recent = job.world, job.cursor, job.recent
    phase = job.settings.phase[cursor.phase]
    firsts = [step for step in world.gather(recent.first()) if step]
    step = min(firsts, default=cursor.step)
    done = recent.at(step)
    end = cursor.samples_seen - (cursor.step - step) * phase.global_batch
    positions = end - phase.global_batch, end - 1
    keys, before = (
        [key for of in world.gather(one.keys if one else []) for key in of]
        for one in (done, recent.at(step - 1))
    )
    file = storage.join(job.settings.out, NAME)
    record = {
        "step": step, "positions": positions, "lr": done.lr if done else None,
        "last_line": recent.line, "keys": keys, "keys_before": before,
    }  # fmt: skip
    noted = world.gather(world.is_first and _write(file, record))[0]
    found = [f"lr {done.lr:.3g}"] if done else []
    scale = recent.line.get("logit_scale")
    found += [f"logit scale {scale:.3g} at step {recent.line['step']}"] if scale else []
    found += [f"keys of the batch in {file}"] if noted else []
    since = f", first at step {step}{'' if recent.knows(step) else ' or before'}" if firsts else ""
    figures = f" ({'; '.join(found)})" if found else ""
    return (
        f"step {cursor.step}: {what} not finite{since}, in the batch of samples {positions[0]:,} to {positions[1]:,} of the run"
        f"{figures}. hint: {_hint(job.settings, phase, cursor.phase)}. {_go_on(_newest(job), cursor.phase)}"
    )


def _newest(job: Job) -> str:
    """The newest whole checkpoint; empty if there is none."""
    path = ""
    if job.world.is_first:
        job.writer.settle()  # what is being written may be the last good one
        with suppress(ValueError):
            path = checkpoint.newest(job.settings.out) or ""
    return str(job.world.gather(path)[0])


def _hint(settings: TrainSettings, phase: Phase, number: int) -> str:
    """What to try, in order; what is set already is not advised."""
    features = any(sidecar.use == "features" for sidecar in settings.sidecar)
    tried = [
        "something odd in that batch or the one before it" + (", or a sidecar's feature that is not finite" if features else ""),
        f"a lower phase.{number}.lr ({phase.lr:.3g} now)",
        f"longer warmup_samples ({phase.warmup_samples:,} now)",
    ]  # fmt: skip
    tried += ['precision = "fp32"'] if settings.precision != "fp32" else []
    tried += ["grad_clip_norm = 1.0"] if not phase.grad_clip_norm else []
    return f"in this order: {'; '.join([*tried, 'a lower max_logit_scale'])}"


def _go_on(path: str, number: int) -> str:
    if not path:
        return "There is no checkpoint yet: begin anew"
    return (
        f"The last good checkpoint is {path}; --resume alone comes to the same step: "
        f"add --allow-change with what you change, e.g. phase.{number}.lr"
    )


def _write(path: str, record: dict[str, Any]) -> bool:
    """Whether it could be written."""
    try:
        storage.write_text(path, json.dumps(record, indent=1, ensure_ascii=False))
    except Exception:  # the run has worse to tell
        return False
    return True
