"""What a run holds while it trains: data, towers, terms, optimizer and the cursor; begun or resumed."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pretrain.loop import checkpoint, optim
from pretrain.loop.log import MetricsLog
from pretrain.loop.settings import Phase, TrainSettings
from pretrain.loop.world import World
from pretrain.model import encoder as towers
from pretrain.objective.base import Dims, Term
from pretrain.objective.infonce import InfoNCE
from pretrain.stream.batch import Batch, Stream
from pretrain.stream.order import integer
from pretrain.stream.tars import TarSet
from pretrain.stream.view.base import View
from pretrain.stream.view.caption_mix import CaptionMix
from pretrain.stream.view.crop import Crop

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
    towers_of: dict[str, towers.Tower]  # view name -> tower

    def __init__(
        self,
        settings: TrainSettings,
        world: World,
        *,
        seed: int,
        data_hash: str,
        recipe_text: str,
        resume: bool,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.settings, self.world, self.seed = settings, world, seed
        self.data_hash, self.recipe_text, self.progress = data_hash, recipe_text, progress
        self.log = MetricsLog(storage.join(settings.out, "metrics.jsonl"))
        self.readers = [TarSet(source.path) for source in settings.shards]
        self.data_sha256 = fingerprint([reader.fingerprint for reader in self.readers])
        self.described = {"seed": seed, **checkpoint.describe(settings)}
        self.cursor = Cursor()
        self.terms = nn.ModuleList()
        self.weights: list[float] = []
        self.saved_path, self._saved = self._begin(resume)
        self.new_bad: Counter[str] = Counter()  # of this rank, not yet summed into the cursor
        self.bad_example = ""
        torch.manual_seed(integer(seed, "weights"))
        pretrained = "" if self._saved else settings.pretrained
        self.encoder = towers.build(settings.model, pretrained).to(world.device)

    def _begin(self, resume: bool) -> tuple[str, dict[str, Any] | None]:
        """The first rank looks at the folder, and all ranks do what it found."""
        found: tuple[str, str] = ("", "")  # (fault, checkpoint)
        if self.world.is_first:
            try:
                found = "", _prepare_folder(self.settings.out, resume, self.recipe_text)
            except ValueError as fault:
                found = str(fault), ""
        refusal, path = self.world.gather(found)[0]
        if refusal:
            raise ValueError(refusal)
        saved = checkpoint.read(path) if path else None
        if saved:
            self._refuse_changes(saved, path)
            self.cursor = Cursor(**saved["cursor"])
        if self.world.is_first:
            self.log.rewind(self.cursor.samples_seen)
        return path, saved

    def _refuse_changes(self, saved: dict[str, Any], path: str) -> None:
        changes = checkpoint.changed(saved["settings"], self.described)
        if saved["data_sha256"] != self.data_sha256:
            changes.append("shards: their content is not what the checkpoint was trained on")
        if saved["data_hash"] and self.data_hash and saved["data_hash"] != self.data_hash:
            changes.append(
                f"data manifest: checkpoint has {saved['data_hash']}, now {self.data_hash}"
            )
        if changes:
            raise ValueError(
                f"{path} cannot be resumed: {'; '.join(changes)}. hint: undo the change, or train into another folder"
            )

    def enter(self, number: int) -> Phase:
        """Make towers, terms, optimizer and stream ready for a phase, as saved or from the last one."""
        phase = self.settings.phase[number]
        resuming = self._saved is not None and number == self.cursor.phase
        if not resuming:
            self.cursor.phase, self.cursor.phase_samples = number, 0
        self.shape(phase)
        torch.manual_seed(integer(self.seed, "objective", number))
        self._enter_objective(phase)
        if resuming and self._saved is not None:
            self.encoder.load_weights(self._saved["state_dict"])
            self.terms.load_state_dict(self._saved["objective"])
        self.model = self.world.wrap(self.encoder)
        self.optimizer = optim.adamw(phase, [self.encoder, self.terms])
        if resuming and self._saved is not None:
            self.optimizer.load_state_dict(self._saved["optimizer"])
            self._saved = None
        self._enter_stream(phase, number)
        return phase

    def shape(self, phase: Phase) -> None:
        """Give the towers the form they have in a phase."""
        self.encoder.thaw()
        for tweak in phase.tweak:
            tweak.apply(self.encoder)

    def _enter_objective(self, phase: Phase) -> None:
        """Fresh terms; one that was in the phase before goes on with what it had learned."""
        before = list(self.terms)
        pairs = phase.objective or ((1.0, InfoNCE()),)
        terms: list[Term] = [copy.deepcopy(term) for _, term in pairs]
        self.weights = [weight for weight, _ in pairs]
        for term in terms:
            term.setup(Dims(self.encoder.embed_dim, self.encoder.pretrained_logit_scale))
            same = next((old for old in before if type(old) is type(term)), None)
            if same is not None:
                before.remove(same)
                term.load_state_dict(same.state_dict())
        self.terms = nn.ModuleList(terms).to(self.world.device)

    def _enter_stream(self, phase: Phase, number: int) -> None:
        views: list[View] = [
            view.fit(self.encoder.image_size) for view in phase.view or (Crop(), CaptionMix())
        ]
        self.towers_of = {view.name: view.tower for view in views}
        given = {f"{name}:pooled" for name in self.towers_of}
        missing = sorted({need for term in self.terms for need in term.needs} - given)  # type: ignore[union-attr]
        if missing or len(self.towers_of) < len(views):
            found = (
                f"needs {missing}, views give {sorted(given)}"
                if missing
                else "two views have one name"
            )
            raise ValueError(
                f"train.phase.{number}: {found}. hint: add a view of that name, or rename one with `name = ...`"
            )
        weights = [source.weight for source in self.settings.shards]
        self.stream = Stream(self.readers, weights, views, self.encoder.tokenize, self.seed)

    def parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.terms.parameters()]

    def logit_scale(self) -> Tensor | None:
        """Of the first term that has one."""
        scales = [term.logit_scale() for term in self.terms]  # type: ignore[operator]
        return next((scale for scale in scales if scale is not None), None)

    def count_bad(self, batch: Batch) -> None:
        """Note the samples of this rank that had to be replaced."""
        for kind, example in batch.bad:
            self.new_bad[kind] += 1
            self.bad_example = self.bad_example or example

    def sum_bad(self) -> None:
        """Add every rank's newly replaced samples to the cursor. All ranks call it together."""
        total = Counter(self.cursor.bad)
        for counts in self.world.gather(self.new_bad):
            total.update(counts)
        self.cursor.bad, self.new_bad = dict(sorted(total.items())), Counter()

    def save(self) -> str:
        """Commit a checkpoint, unless there is one of this very point. All ranks call it together.

        Raises TrainingStopped where weights are no longer finite: the older one stays the newest.
        """
        self.sum_bad()
        name = f"samples-{self.cursor.samples_seen:012d}.pt"
        if not self.saved_path.endswith(name):
            refuse_unless(
                all(bool(p.isfinite().all()) for p in self.parameters()), self.cursor.step
            )
            if self.world.is_first:
                checkpoint.save(self.settings.out, self._content(), self.settings.keep_checkpoints)
        self.saved_path = storage.join(checkpoint.folder(self.settings.out), name)
        return self.saved_path

    def _content(self) -> dict[str, Any]:
        scale = self.logit_scale()
        return {
            "model": {"name": self.encoder.name, "config": self.encoder.config},
            "state_dict": self.encoder.weights(
                self.encoder.pretrained_logit_scale if scale is None else float(scale)
            ),
            "objective": self.terms.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cursor": asdict(self.cursor),
            "settings": self.described,
            "recipe": self.recipe_text,
            "data_hash": self.data_hash,
            "data_sha256": self.data_sha256,
        }


class TrainingStopped(RuntimeError):
    """The run can't go on: too many bad samples, or figures that are not finite. What is saved stays."""


def refuse_unless(finite: bool, step: int) -> None:
    if not finite:
        raise TrainingStopped(
            f"step {step}: the loss or the weights are not finite. hint: lower lr, lengthen warmup_samples, "
            'set grad_clip_norm = 1.0, or use precision = "fp32"; --resume goes on from the last checkpoint'
        )


def _prepare_folder(out: str, resume: bool, recipe_text: str) -> str:
    """The checkpoint to resume from, or "". Raises ValueError for a folder that can't be used."""
    if storage.is_url(out):
        raise ValueError(
            f"train.out = {out!r} is a URL. hint: train into a local or shared folder, and copy it"
        )
    begun = [
        name for name in ("metrics.jsonl", "checkpoints") if os.path.exists(storage.join(out, name))
    ]
    if begun and not resume:
        raise ValueError(
            f"{out} already holds a run ({begun[0]}). hint: go on with --resume, or give another folder"
        )
    path, damaged = checkpoint.newest_whole(out) if resume else (None, [])
    for fault in damaged:
        _logger.warning("%s; resuming from %s, the damaged one is set aside", fault, path)
    if path is not None:
        checkpoint.set_aside_newer(out, path)
    checkpoint.clean(out)
    os.makedirs(out, exist_ok=True)
    if recipe_text and path is None:
        storage.write_text(storage.join(out, "recipe.toml"), recipe_text)
    return path or ""


def phase_end(cursor: Cursor, phase: Phase) -> int:
    """samples_seen at which the phase of the cursor ends; the last batch is a whole one."""
    steps = math.ceil(phase.samples / phase.global_batch)
    return cursor.samples_seen - cursor.phase_samples + steps * phase.global_batch
