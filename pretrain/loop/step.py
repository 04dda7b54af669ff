"""One optimizer step, and batches brought to the device ahead of it. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import Tensor

from pretrain.loop import optim
from pretrain.loop.gradients import Gradients
from pretrain.loop.job import Job
from pretrain.loop.schedule import lr_at
from pretrain.loop.settings import Phase
from pretrain.model.encoder import TOWERS
from pretrain.objective.base import Metrics
from pretrain.stream.batch import Batch


class Step:
    """The steps of one phase: gradients, clipping, AdamW, what terms do afterwards, averaged weights."""

    def __init__(self, job: Job, phase: Phase) -> None:
        self.job, self.phase = job, phase
        self.gradients = Gradients(
            job.model,
            job.encoder,
            list(zip(job.weights, job.terms, strict=True)),  # type: ignore[arg-type]
            job.towers_of,
            job.world,
            seed=job.seed,
            bf16=job.settings.precision == "bf16",
            micro_batch=phase.micro_batch,
        )
        self.local_batch = phase.global_batch // job.world.size
        # Walked once: a model has hundreds of parameters, and looking for them takes longer than a launch.
        self.of_terms = list(job.terms.parameters())
        self.of_towers = {
            tower: [p for _, p in job.encoder.tower_parameters(tower) if p.requires_grad]
            for tower in TOWERS
        }
        self.trained = [*(p for of in self.of_towers.values() for p in of), *self.of_terms]

    def __call__(self, batch: Batch, logged: bool) -> tuple[Tensor, Metrics, float]:
        """Returns this rank's loss, figures to log, and the learning rate."""
        job, cursor = self.job, self.job.cursor
        first = cursor.samples_seen + job.world.rank * self.local_batch
        loss, figures = self.gradients(batch, first, cursor.step)
        job.world.average_gradients(self.of_terms)
        for tower in TOWERS if logged else ():
            figures[f"grad_norm_{tower}"] = optim.grad_norm(self.of_towers[tower])
        optim.clip_gradients(self.trained, self.phase.grad_clip_norm)
        cursor.step += 1
        cursor.samples_seen += self.phase.global_batch
        cursor.phase_samples += self.phase.global_batch
        lr = lr_at(self.phase, cursor.phase_samples)
        optim.set_lr(job.optimizer, lr)
        job.optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)
        for term in job.terms:
            term.after_step()  # type: ignore[operator]
        if job.ema is not None:
            job.ema.update(cursor.step)
        job.count_bad(batch)
        return loss, figures, lr


def brought(
    batches: Iterable[Batch], device: torch.device, bring: Callable[[Batch], Batch] | None = None
) -> Generator[Batch, None, None]:
    """Each batch on the device. With CUDA the next one is copied, and cropped, while a step runs.

    ``bring`` does more than to copy: see ``device_decode.Bring``.
    """
    bring = bring or (lambda batch: batch if batch.fatal else batch.to(device))
    if device.type != "cuda":
        for batch in batches:
            yield bring(batch)
        return
    beside = torch.cuda.Stream(device)
    ahead: tuple[Batch, Any] | None = None
    for batch in batches:
        copied = _copied(batch, bring, beside)
        if ahead is not None:
            yield _handed_over(*ahead, device)
        ahead = copied
    if ahead is not None:
        yield _handed_over(*ahead, device)


def _copied(batch: Batch, bring: Callable[[Batch], Batch], beside: Any) -> tuple[Batch, Any]:
    """The batch on its way, and the event of its arrival."""
    with torch.cuda.stream(beside):
        return bring(batch), beside.record_event()


def _handed_over(batch: Batch, arrived: Any, device: torch.device) -> Batch:
    """The step's stream waits for the copy, and the copy's memory for the step."""
    if batch.fatal:
        return batch
    own = torch.cuda.current_stream(device)
    own.wait_event(arrived)
    grouped = [groups.order for groups in batch.groups.values()]  # its memory holds both tensors
    for rows in (*batch.views.values(), *batch.stored.values(), batch.positions, *grouped):
        if isinstance(rows, Tensor) and rows.is_cuda:
            rows.record_stream(own)
    return batch
