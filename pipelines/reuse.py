"""What was measured before is not measured again: values of rows under an older fingerprint are taken over.

A new threshold above a stage, or new files in the source, change which rows a stage sees and with that
its fingerprint; what it says of a row it has seen stays the same (law 1: a row stage's values hang on
the row alone). So rows that an earlier sidecar of the same ``Planned.measure`` has are copied, pictures
with them, and only the others are processed. A row that failed is processed again: the cause may have passed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts, storage
from curate.contract.parts import stage_folder
from curate.stage import error
from pipelines.part import sidecar_schema
from pipelines.plan import CurationPlan, Planned

_NOTE = "measure.json"


@dataclass
class Prior:
    """What is known of one stage and part. ``known``: bool of shape (rows of the part,)."""

    planned: Planned
    known: np.ndarray
    table: pa.Table  # a row for each row of the part; only the known ones mean anything
    picture_paths: list[str]
    _pictures: dict[str, bytes] = field(default_factory=dict)

    def take(self, rows: np.ndarray, uids: list[str]) -> pa.Table:
        """The columns of the stage, keep and reason included, for known rows."""
        found = self.table.take(pa.array(rows))
        if self.planned.makes_images:
            if not self._pictures:
                for path in self.picture_paths:
                    self._pictures.update(parts.read_images(path))
            pictures = [self._pictures.get(uid) for uid in uids]
            found = found.append_column(
                self.planned.schema.field("image"),
                pa.array(pictures, self.planned.schema.field("image").type),
            )
        return found.select([name for name in _names(self.planned) if name in found.column_names])


def note_measure(plan: CurationPlan, planned: Planned) -> None:
    """Say in the stage's folder what its values hang on, so that later runs find them."""
    folder = plan.pool.columns_folder(planned.use, planned.fingerprint)
    path = storage.join(folder, _NOTE)
    if not storage.exists(path):
        told = {"measure": planned.measure, "fingerprint": planned.fingerprint}
        storage.write_text(path, json.dumps(told) + "\n")


def fingerprints(plan: CurationPlan, planned: Planned) -> tuple[str, ...]:
    """Fingerprints of earlier runs that measured the same, in order of name. One listing of the pool."""
    found: list[str] = []
    for folder in storage.listed(storage.join(plan.pool_root, "columns")):
        path = storage.join(folder, _NOTE)
        name = folder.rsplit("/", 1)[-1]
        if name.startswith(stage_folder(planned.use, "")) and storage.exists(path):
            told = storage.read_json(path, "pool")
            if told["measure"] == planned.measure and told["fingerprint"] != planned.fingerprint:
                found.append(told["fingerprint"])
    return tuple(sorted(found))


def find(
    plan: CurationPlan, planned: Planned, part: int, earlier: tuple[str, ...] | None = None
) -> Prior | None:
    """Everything earlier runs measured for this stage and part; None where there is nothing.

    ``earlier``: ``fingerprints(plan, planned)`` where the caller has them.
    """
    prior: Prior | None = None
    for other in fingerprints(plan, planned) if earlier is None else earlier:
        path = plan.pool.columns_path(planned.use, other, part)
        pictures = plan.pool.images_path(other, part)
        if not storage.exists(path) or (planned.makes_images and not storage.exists(pictures)):
            continue
        table = parts.read_table(path, sidecar_schema(planned).names)
        known = known_rows(planned, table)
        if prior is None:
            prior = Prior(planned, known, table, [pictures])
        elif (known & ~prior.known).any():
            prior = _joined(prior, known, table, pictures)
    return prior


def known_rows(planned: Planned, table: pa.Table) -> np.ndarray:
    """The rows of a sidecar whose values count for later runs too: bool of shape (rows,).

    A row that was refused above never came to the stage: its keep is null. One that failed is asked
    again, unless the stage says that such a failure lasts.
    """
    reasons = table["reason"].cast(pa.string())
    failed = np.asarray(pc.fill_null(pc.starts_with(reasons, "error."), False))
    for kind in planned.stage.lasting_errors:
        lasts = pc.fill_null(pc.equal(reasons, error(planned.use, kind)), False)
        failed &= ~np.asarray(lasts)
    return np.asarray(table["keep"].is_valid()) & ~failed


def spliced(known: np.ndarray, before: pa.Table, fresh: pa.Table) -> pa.Table:
    """One table from the rows that were known and those that were not. ``known``: bool, (rows,)."""
    places = np.where(known, np.cumsum(known), known.sum() + np.cumsum(~known)) - 1
    both = pa.concat_tables([before.cast(fresh.schema), fresh]).unify_dictionaries()
    return both.take(pa.array(places))


def _joined(prior: Prior, known: np.ndarray, table: pa.Table, pictures: str) -> Prior:
    """Rows that only the other sidecar has, added."""
    places = np.where(prior.known, np.arange(len(known)), np.arange(len(known)) + len(known))
    both = pa.concat_tables([prior.table, table]).unify_dictionaries().take(pa.array(places))
    return Prior(prior.planned, prior.known | known, both, [*prior.picture_paths, pictures])


def _names(planned: Planned) -> list[str]:
    names = planned.schema.names
    return [*names, *(name for name in ("keep", "reason") if name not in names)]
