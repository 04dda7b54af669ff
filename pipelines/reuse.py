"""What was measured before is not measured again: values of rows under an older fingerprint are taken over.

A new threshold above a stage, or new files in the source, change which rows a stage sees and with that
its fingerprint; what it says of a row it has seen stays the same (law 1: a row stage's values hang on
the row alone). So rows that an earlier sidecar of the same ``Planned.measure`` has are copied, pictures
with them, and only the others are processed. A row that failed is processed again: the cause may have passed.
A run that goes on from another one (``Planned.follows``: a retry, a larger allowance) takes over failures
too, but for those that the retry is about. A part of which nothing is asked is taken over as it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import done, parts, storage
from curate.contract.parts import stage_folder
from curate.stage import error
from pipelines import generations
from pipelines.part import (
    alive_mask,
    beside,
    commit,
    is_done,
    sidecar,
    sidecar_schema,
    stats_of,
)
from pipelines.plan import CurationPlan, Planned

_NOTE = "measure.json"


class Run(NamedTuple):
    """An earlier run of a stage that measured the same, and which of its failures are asked again."""

    fingerprint: str
    kinds: tuple[str, ...] = ()  # these, though the stage may say that they last
    is_followed: bool = False  # and no others


@dataclass
class Prior:
    """What is known of one stage and part. ``known``: bool of shape (rows of the part,)."""

    planned: Planned
    known: np.ndarray
    table: pa.Table  # a row for each row of the part; only the known ones mean anything
    picture_paths: list[str]  # of the runs that something is known from
    known_from: np.ndarray  # the place of a row's run in picture_paths; shape (rows,)
    _pictures: dict[int, parts.Pictures] = field(default_factory=dict)

    def take(self, rows: np.ndarray, uids: list[str]) -> pa.Table:
        """The columns of the stage, keep and reason included, for known rows."""
        found = self.table.take(pa.array(rows))
        if self.planned.makes_images:
            kind = self.planned.schema.field("image")
            found = found.append_column(kind, pa.array(self._images(rows, uids), kind.type))
        return found.select([name for name in _names(self.planned) if name in found.column_names])

    def close(self) -> None:
        """Let go of the pictures."""
        for pictures in self._pictures.values():
            pictures.close()
        self._pictures.clear()

    def _images(self, rows: np.ndarray, uids: list[str]) -> list[bytes | None]:
        """Each picture from the run that its row is known from."""
        images: list[bytes | None] = [None] * len(rows)
        runs = self.known_from[rows]
        for run in np.unique(runs).tolist():
            places = np.flatnonzero(runs == run).tolist()
            path = self.picture_paths[run]
            is_cut = path.endswith(done.ASIDE)
            pictures = self._pictures.setdefault(run, parts.Pictures(path, is_cut))
            found = pictures([uids[place] for place in places])
            for place, image in zip(places, found, strict=True):
                images[place] = image
        return images


def note_measure(plan: CurationPlan, planned: Planned) -> None:
    """Say in the stage's folder what its values hang on, so that later runs find them."""
    folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
    path = storage.join(folder, _NOTE)
    if not storage.exists(path):
        told = {
            "measure": planned.measure,
            "fingerprint": planned.fingerprint,
            "recipe": plan.recipe,
            "generation": generations.generation(plan.retries, planned.name),
        }
        storage.write_text(path, json.dumps(told) + "\n")


def fingerprints(plan: CurationPlan, planned: Planned) -> tuple[Run, ...]:
    """Earlier runs that measured the same; the newest generation first, then in order of name.

    One listing of the pool.
    """
    followed = dict(planned.follows)
    found: list[tuple[int, Run]] = []
    for folder in storage.listed(storage.join(plan.pool_root, "columns")):
        path = storage.join(folder, _NOTE)
        name = folder.rsplit("/", 1)[-1]
        if not name.startswith(stage_folder(planned.use, "")) or not storage.exists(path):
            continue
        told = storage.read_json(path, "pool")
        # Another recipe's retries are not this one's: nothing was asked since, as far as is known.
        is_own = told.get("recipe", plan.recipe) == plan.recipe
        other, since = told["fingerprint"], told.get("generation", 0) if is_own else 0
        if told["measure"] != planned.measure or other == planned.fingerprint:
            continue
        asked = generations.asked_since(plan.retries, planned.name, since)
        kinds = followed.get(other, asked)
        found.append((since, Run(other, kinds, other in followed)))
    return tuple(run for _, run in sorted(found, key=lambda one: (-one[0], one[1].fingerprint)))


def find(
    plan: CurationPlan, planned: Planned, part: int, earlier: Sequence[Run] | None = None
) -> Prior | None:
    """Everything earlier runs measured for this stage and part; None where there is nothing.

    ``earlier``: ``fingerprints(plan, planned)`` where the caller has them.
    """
    prior = salvaged(plan, planned, part)
    for run in fingerprints(plan, planned) if earlier is None else earlier:
        path, pictures = _paths(plan, planned, run, part)
        if not _is_there(planned, path, pictures):
            continue
        table = parts.read_part(path, sidecar_schema(planned).names)
        known = known_rows(planned, table, run)
        if prior is None:
            prior = Prior(planned, known, table, [pictures], np.zeros(len(known), np.int32))
        elif (known & ~prior.known).any():
            prior = _joined(prior, known, table, pictures)
    return prior


def salvaged(plan: CurationPlan, planned: Planned, part: int) -> Prior | None:
    """What a part still holds that was set aside as damaged: its rows, where the sidecar is as it was written.

    Of its pictures those in front of a cut; where other bytes changed it can't be told which picture has them.
    """
    own, aside = sidecar(plan, planned, part), beside(plan, planned, part)
    stats = done.aside_stats(own)
    if stats is None or not stats.get("sha256"):
        return None
    path, pictures = own + done.ASIDE, aside.get("images", "") + done.ASIDE
    if not storage.exists(path) or done.digest_of(path) != stats["sha256"]:
        return None
    table = parts.read_table(path, sidecar_schema(planned).names)
    known = known_rows(planned, table)
    if planned.makes_images:
        uids = parts.read_part(plan.pool.rows_path(part), ["uid"])["uid"]
        there = parts.uids_in_front(pictures, stats.get("images", {}))
        kept = np.asarray(pc.fill_null(table["keep"], True))
        known &= ~kept | np.asarray(pc.is_in(uids, value_set=pa.array(sorted(there), pa.string())))
    return Prior(planned, known, table, [pictures], np.zeros(len(known), np.int32))


def known_rows(planned: Planned, table: pa.Table, run: Run | None = None) -> np.ndarray:
    """The rows of a sidecar whose values count for later runs too: bool of shape (rows,).

    A row that was refused above never came to the stage: its keep is null. One that failed is asked
    again, unless the stage says that such a failure lasts; where ``run`` is given, as that says.
    """
    reasons = table["reason"].cast(pa.string())
    failures = [text for text in pc.unique(reasons).to_pylist() if text and _is_error(text)]
    again = [text for text in failures if _is_asked_again(planned, text, run or Run(""))]
    failed = np.asarray(pc.is_in(reasons, value_set=pa.array(again, pa.string())))
    return np.asarray(table["keep"].is_valid()) & ~failed


def carry_over(
    plan: CurationPlan, index: int, part: int, earlier: Sequence[Run] | None = None
) -> bool:
    """Commit a part as an earlier run has it, where that knows just the rows that live; pictures are linked.

    Returns whether the stage is done for the part now.
    """
    planned = plan.stages[index]
    if not all(is_done(plan, plan.at(above), part) for above in planned.upstream):
        return False
    started = time.perf_counter()
    for run in fingerprints(plan, planned) if earlier is None else earlier:
        path, pictures = _paths(plan, planned, run, part)
        if not _is_there(planned, path, pictures):
            continue
        alive = alive_mask(plan, planned.upstream, part)
        decided = parts.read_part(path, ["keep", "reason"])
        same = np.array_equal(np.asarray(decided["keep"].is_valid()), alive)
        if not same or not np.array_equal(known_rows(planned, decided, run), alive):
            continue
        own, told = beside(plan, planned, part), done.checked(path)
        if parts.prior_attempt(sidecar(plan, planned, part), own):
            return True
        others = {}
        for name, target in own.items():
            storage.link_or_copy(pictures, target)
            others[name] = (target, done.written_as(target, told[name]["sha256"]))
        table = parts.read_table(path)
        stats = stats_of(table, part, alive, time.perf_counter() - started)
        known = {"measure": planned.measure, "fingerprint": planned.fingerprint}
        taken = {"taken_over": stats["rows_in"]}
        commit(plan, planned, part, table, {**stats, **taken, **known}, others)
        return True
    return False


def _paths(plan: CurationPlan, planned: Planned, run: Run, part: int) -> tuple[str, str]:
    """(sidecar, tar of pictures) of an earlier run."""
    return (
        plan.pool.columns_path(planned.use, run.fingerprint, part),
        plan.pool.images_path(run.fingerprint, part),
    )


def _is_there(planned: Planned, path: str, pictures: str) -> bool:
    return done.is_done(path, {"images": pictures} if planned.makes_images else None)


def _is_error(reason: str) -> bool:
    return reason.startswith("error.")


def _is_asked_again(planned: Planned, reason: str, run: Run) -> bool:
    if generations.is_meant(planned.use, reason, run.kinds):
        return True
    lasts = {error(planned.use, kind) for kind in planned.stage.lasting_errors}
    return not run.is_followed and reason not in lasts


def spliced(known: np.ndarray, before: pa.Table, fresh: pa.Table) -> pa.Table:
    """One table from the rows that were known and those that were not. ``known``: bool, (rows,)."""
    places = np.where(known, np.cumsum(known), known.sum() + np.cumsum(~known)) - 1
    both = pa.concat_tables([before.cast(fresh.schema), fresh]).unify_dictionaries()
    return both.take(pa.array(places))


def _joined(prior: Prior, known: np.ndarray, table: pa.Table, pictures: str) -> Prior:
    """Rows that only the other sidecar has, added."""
    places = np.where(prior.known, np.arange(len(known)), np.arange(len(known)) + len(known))
    both = pa.concat_tables([prior.table, table]).unify_dictionaries().take(pa.array(places))
    runs = np.where(prior.known, prior.known_from, len(prior.picture_paths))
    paths = [*prior.picture_paths, pictures]
    return Prior(prior.planned, prior.known | known, both, paths, runs)


def _names(planned: Planned) -> list[str]:
    names = planned.schema.names
    return [*names, *(name for name in ("keep", "reason") if name not in names)]
