"""What a run holds while it trains: data, towers, terms, optimizer and the cursor; begun or resumed."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pretrain.loop import away, checkpoint, optim, parallel, resume, serve, unfinite
from pretrain.loop.bad_samples import BadShare, Replaced, named, refuse_lost
from pretrain.loop.ema import Ema
from pretrain.loop.kept import Kept
from pretrain.loop.log import MetricsLog
from pretrain.loop.settings import Phase, ShardSource, TrainSettings, check_buckets
from pretrain.loop.world import World
from pretrain.loop.writer import Writer
from pretrain.model import encoder as towers
from pretrain.objective.base import Dims
from pretrain.stream.batch import Batch, Stream
from pretrain.stream.order import integer, repeats
from pretrain.stream.tars import TarSet, check_matched
from pretrain.stream.view.base import View

_logger = logging.getLogger(__name__)


@dataclass
class Cursor:
    """How far a run is. ``bad`` counts replaced samples of all ranks by kind."""

    samples_seen: int = 0
    step: int = 0
    phase: int = 0
    phase_samples: int = 0
    bad: dict[str, int] = field(default_factory=dict)


class Job:
    """One run on one rank. ``enter`` prepares a phase; ``save`` commits where it stands."""

    model: nn.Module  # the encoder, behind DDP where there are several ranks
    optimizer: torch.optim.Optimizer
    stream: Stream
    towers_of: dict[str, towers.Tower]  # view name -> tower, of views that terms need

    def __init__(
        self,
        settings: TrainSettings,
        world: World,
        *,
        seed: int,
        data_hash: str,
        recipe_text: str,
        again: bool,
        progress: Callable[[dict[str, Any]], None] | None,
        allow_changes: Sequence[str] = (),
        held: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.world, self.seed = settings, world, seed
        self.data_hash, self.recipe_text, self.progress = data_hash, recipe_text, progress
        self.log = MetricsLog(storage.join(settings.out, "metrics.jsonl"), held)
        self.readers = self._open_readers()
        self.data_sha256 = fingerprint([reader.fingerprint for reader in self.readers])
        self.described = {"seed": seed, **checkpoint.describe(settings)}
        self.cursor = Cursor()
        self.terms = nn.ModuleList()
        self.weights: list[float] = []
        self.history: list[dict[str, Any]] = []  # of allowed changes, by samples_seen
        self.saved_path, self._saved = self._begin(again, allow_changes)
        self.kept = Kept(settings, self.log, held)
        self.writer = Writer(self.kept.write)
        self.saved_at_s = time.monotonic()
        self.ema: Ema | None = None
        self.replaced = Replaced()  # not yet summed into the cursor
        self.recent = unfinite.Recent(0, settings.log_every_steps)
        seen, bad = self.cursor.samples_seen, sum(self.cursor.bad.values())
        marks = (self._saved or {}).get("bad_window", ())
        self.bad_share = BadShare(settings.max_bad_frac, seen, bad, marks)
        torch.manual_seed(integer(seed, "weights"))
        pretrained = "" if self._saved else settings.pretrained
        with away.on_disk(pretrained) as weights:
            self.encoder = towers.build(settings.model, weights).to(world.device)
        check_buckets(settings, self.encoder.context_length)

    def _open_readers(self) -> list[TarSet]:
        """One process of each machine opens the shards first, and makes the indexes that the others find."""
        readers: list[TarSet] = []
        for firsts_turn in (True, False):
            fault = ""
            if firsts_turn == (int(os.environ.get("LOCAL_RANK", "0")) == 0):
                try:
                    readers = [self._reader(source) for source in self.settings.shards]
                    check_matched(readers)
                    refuse_lost(readers, self.settings.max_bad_frac)
                except ValueError as found:
                    fault = str(found)
            refusal = next((found for found in self.world.gather(fault) if found), "")
            if refusal:
                raise ValueError(refusal)
        sources, phases = self.settings.shards, self.settings.phase
        sets = [(one.path, len(of), one.weight) for one, of in zip(sources, readers, strict=True)]
        again = repeats(sets, max((phase.global_batch for phase in phases), default=0))
        for line in [*named(readers), *again] if self.world.is_first else ():
            _logger.warning("%s", line)
        return readers

    def _reader(self, source: ShardSource) -> TarSet:
        settings = self.settings
        return TarSet(
            source.path,
            sidecars=settings.sidecar,
            cache=settings.cache,
            cache_gb=settings.cache_gb,
        )

    def _begin(self, again: bool, allow: Sequence[str]) -> tuple[str, dict[str, Any] | None]:
        """The first rank looks at the folder, and all ranks do what it found."""
        out = self.settings.out
        found: tuple[str, str] = ("", "")  # (fault, checkpoint)
        if self.world.is_first:
            try:
                found = "", resume.prepare_folder(out, again, self.recipe_text)
            except (ValueError, OSError) as fault:  # the others are told, and don't wait
                found = str(fault), ""
        refusal, path = self.world.gather(found)[0]
        if refusal:
            raise ValueError(refusal)
        saved = checkpoint.read(path) if path else None
        changes: dict[str, str] = {}
        if saved:
            self.cursor = Cursor(**saved["cursor"])
            now = resume.Now(
                self.described, self.data_sha256, self.data_hash, len(self.settings.phase)
            )
            changes, idle = resume.allowed_changes(saved, now, path, allow)
            self.history = resume.history(saved, changes)
            for key in idle if self.world.is_first else ():
                _logger.warning("--allow-change %s: nothing of that name changed", key)
        if self.world.is_first:
            self.log.rewind(self.cursor.samples_seen)
            if changes:
                _logger.warning("going on with changes: %s", changes)
                resume.note(self.log, self.history[-1], self.recipe_text)
        return path, saved

    def enter(self, number: int) -> Phase:
        """Make towers, terms, optimizer and stream ready for a phase, as saved or from the last one."""
        phase = self.settings.phase[number]
        resuming = self._saved is not None and number == self.cursor.phase
        if not resuming:
            self.cursor.phase, self.cursor.phase_samples = number, 0
        saved = self._saved if resuming else None
        self._make_whole()
        torch.manual_seed(integer(self.seed, "shape", number))
        self.shape(phase)
        if saved is not None:
            self.encoder.pretrained_logit_scale = saved.get(
                "pretrained_logit_scale", self.encoder.pretrained_logit_scale
            )
        self.encoder.draw_key = integer(self.seed, "draw", number)
        torch.manual_seed(integer(self.seed, "objective", number))
        views = self._enter_objective(phase, number)
        with self._fitting():
            if saved is not None:
                self.encoder.load_weights(saved["state_dict"])
                self.encoder.normalise_as(saved["model"])
                self.terms.load_state_dict(saved["objective"])
            self._wrap()
            self.optimizer = optim.adamw(phase, [self.encoder, self.terms])
            if saved is not None:
                self._load_optimizer(saved["optimizer"])
                if self.ema and saved.get("ema"):
                    self.ema.load_state_dict(saved["ema"])
        if resuming:
            self._saved = None
        self._enter_stream(views)
        return phase

    def _make_whole(self) -> None:
        """Sharded towers (FSDP2) stay so for good: the next phase begins with new ones of the same weights."""
        if parallel.is_sharded(self.encoder):
            old = self.encoder
            weights = {name: parallel.whole(w).cpu() for name, w in old.clip.state_dict().items()}
            self.encoder = towers.from_config(old.name, old.config)
            self.encoder.load_weights(weights)
            self.encoder.name = old.name
            self.encoder.pretrained_logit_scale = old.pretrained_logit_scale
            self.encoder.normalise_as(old.described())
            self.encoder.to(self.world.device)

    def _wrap(self) -> None:
        """Blocks compiled or recomputed as told, the towers behind DDP or FSDP2, and their average."""
        told = self.settings
        on_cuda = self.world.device.type == "cuda"
        compiled = told.compile == "on" or (told.compile == "auto" and on_cuda)
        parallel.prepare_blocks(
            self.encoder, compiled=compiled, checkpointing=told.activation_checkpointing
        )
        self.model = parallel.wrap(
            self.encoder, self.world, told.parallel, bf16=told.precision == "bf16"
        )
        if self.ema:
            self.ema.follow(self.model)
        elif told.ema_decay:
            self.ema = Ema(self.model, told.ema_decay)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Moments as saved, options (which may have been changed) as the recipe has them now."""
        now = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        parallel.load_optimizer_state(self.model, self.optimizer, state)
        for group, options in zip(self.optimizer.param_groups, now, strict=True):
            group.update(options)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """What a checkpoint holds may not fit a run whose model or objective was changed."""
        try:
            yield
        except (RuntimeError, KeyError, ValueError) as fault:
            if self._saved is None or isinstance(fault, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{self.saved_path} does not fit the run as it is now: {' '.join(str(fault).split())[:300]}. "
                "hint: put another model or objective into a run or a phase of its own"
            ) from fault

    def shape(self, phase: Phase) -> None:
        """Give the towers the form they have in a phase."""
        self.encoder.thaw()
        for tweak in phase.tweak:
            tweak.apply(self.encoder)

    def _enter_objective(self, phase: Phase, number: int) -> list[View]:
        """Terms, and views that give what they need; what none of them needs stands still."""
        told, dims = (
            self.settings,
            Dims(self.encoder.embed_dim, self.encoder.pretrained_logit_scale),
        )
        self.weights, terms = serve.terms_of(phase, dims, self.terms)
        self.terms = nn.ModuleList(terms).to(self.world.device)
        self.needs = serve.needs_of(terms)
        where, size_px = f"train.phase.{number}", self.encoder.image_size
        views = serve.views_of(where, phase, size_px, self.needs, told.sidecar)
        self.towers_of = serve.used_views(views, self.needs)
        parallel.prepare_blocks(self.encoder, compiled=False, checkpointing=False)
        idle = serve.still_idle(self.encoder, self.towers_of, self.needs)
        if idle and self.world.is_first:
            _logger.warning("%s: %s", where, serve.of_idle(idle))
        return views

    def _enter_stream(self, views: list[View]) -> None:
        weights = [source.weight for source in self.settings.shards]
        whole = any(
            of == "text" and f"{name}:tokens" in self.needs for name, of in self.towers_of.items()
        )
        # Shorter texts are exact for towers in which no token sees the padding; but tokens of all
        # ranks' texts must be equally many.
        shorter = self.encoder.text_is_causal and not whole
        buckets = self.settings.text_buckets if shorter else ()
        # Not the encoder's own method: a loader that is spawned would be sent the towers with it.
        words, length = self.encoder.tokenizer, self.encoder.text_length
        # All ranks must call sharded blocks equally often.
        self.stream = Stream(
            self.readers,
            weights,
            views,
            words.with_length(length) if length else words,
            self.seed,
            buckets=buckets,
            augment=self.settings.augment,
            split=not parallel.is_sharded(self.model),
            decode=self.settings.decode,
        )

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.terms.parameters()]

    def logit_scale(self) -> Tensor | None:
        """Of the first term that has one."""
        scales = [term.logit_scale() for term in self.terms]  # type: ignore[operator]
        return next((scale for scale in scales if scale is not None), None)

    def count_bad(self, batch: Batch) -> None:
        """Note the samples of this rank that had to be replaced."""
        self.replaced.count(batch.bad)

    def sum_bad(self) -> None:
        """Add every rank's newly replaced samples to the cursor. All ranks call it together."""
        self.cursor.bad = self.replaced.add_to(self.cursor.bad, self.world)

    def due_in_s(self) -> float:
        """Until the clock asks for the next checkpoint."""
        passed_s = time.monotonic() - self.saved_at_s
        return max(self.settings.checkpoint_minutes * 60 - passed_s, 0.0)

    def is_due(self) -> bool:
        """Whether this rank asks for a checkpoint: by the clock, or to have a fault of the last one raised."""
        now_s = time.monotonic()
        passed = now_s - self.saved_at_s > self.settings.checkpoint_minutes * 60
        if passed:
            self.saved_at_s = now_s  # asked once: the answer may come a step later
        return self.world.is_first and (passed or self.writer.failed)

    def is_milestone(self) -> bool:
        """Whether the last step passed a multiple of keep_every_samples; on all ranks alike."""
        every, seen = self.settings.keep_every_samples, self.cursor.samples_seen
        last = seen - self.settings.phase[self.cursor.phase].global_batch
        return bool(every) and seen // every > last // every

    def save(self, wait: bool = True) -> str:
        """Write a checkpoint, unless there is one of this very point. All ranks call it together.

        Without ``wait`` it is written beside the steps that follow. Raises TrainingStopped where
        weights are no longer finite (the older one stays the newest) or nothing can be written.
        """
        self.sum_bad()
        self.saved_at_s = time.monotonic()
        name = f"samples-{self.cursor.samples_seen:012d}.pt"
        if not self.saved_path.endswith(name):
            bad = self.world.any(not checkpoint.all_finite(self.parameters()))[0]
            refuse_unless(not bad, self, "the weights are")
            content = self._content()
            self._with_writer(lambda: self.writer.begin(content))
        if wait:
            self._with_writer(self.writer.wait)
        self.saved_path = storage.join(checkpoint.folder(self.settings.out), name)
        return self.saved_path

    def _with_writer(self, act: Callable[[], None]) -> None:
        """The first rank acts; a fault of the writer stops all ranks with its reason."""
        fault = ""
        if self.world.is_first:
            try:
                act()
            except away.FolderLost as found:
                fault = str(found)
            except Exception as found:
                fault = (
                    f"no checkpoint can be written to {away.written_to(self.settings.out)}: {type(found).__name__}: {found}. "
                    "hint: make room or mend the disk; --resume goes on from the last checkpoint"
                )
        fault = self.world.gather(fault)[0]
        if fault:
            raise TrainingStopped(fault)

    def refuse_unput(self) -> None:
        """Raise TrainingStopped where the last checkpoint is on this disk only; on all ranks alike."""
        if unput := self.world.gather(self.kept.last_words())[0]:
            raise TrainingStopped(unput)

    def _content(self) -> dict[str, Any]:
        """All that decides the next step. With sharded towers all ranks call it together."""
        own = self.logit_scale()
        scale = torch.tensor(self.encoder.pretrained_logit_scale) if own is None else own.detach()
        weights = {**parallel.full_state(self.model), "logit_scale": scale.log()}
        return {
            "model": self.encoder.described(),
            "state_dict": weights,
            "ema": self.ema.state_dict() if self.ema else {},
            "objective": self.terms.state_dict(),
            "pretrained_logit_scale": self.encoder.pretrained_logit_scale,
            "optimizer": parallel.optimizer_state(self.model, self.optimizer),
            "cursor": asdict(self.cursor),
            "bad_window": self.bad_share.saved(),
            "settings": self.described,
            "recipe": self.recipe_text,
            "data_hash": self.data_hash,
            "data_sha256": self.data_sha256,
            "history": self.history,
            "forever": self.is_milestone(),
        }


class TrainingStopped(RuntimeError):
    """The run can't go on: too many bad samples, or figures that are not finite. What is saved stays."""


def refuse_unless(finite: bool, job: Job, what: str) -> None:
    """Raise TrainingStopped for "the loss is" or "the weights are" not finite; on all ranks alike."""
    if not finite:
        raise TrainingStopped(unfinite.told(job, what))


def phase_end(cursor: Cursor, phase: Phase) -> int:
    """samples_seen at which the phase of the cursor ends; the last batch is a whole one."""
    left = max(phase.samples - cursor.phase_samples, 0)
    return cursor.samples_seen + math.ceil(left / phase.global_batch) * phase.global_batch
