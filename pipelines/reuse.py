"""What was measured before is not measured again: values of rows under an older fingerprint are taken over.

A new threshold above a stage, or new files in the source, change which rows a stage sees and with that
its fingerprint; what it says of a row it has seen stays the same (law 1: a row stage's values hang on
the row alone). So rows that an earlier sidecar of the same ``Planned.measure`` has are copied, pictures
with them, and only the others are processed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from curate.contract import parts, storage
from pipelines.part import sidecar_schema
from pipelines.plan import CurationPlan, Planned


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


def find(plan: CurationPlan, planned: Planned, part: int) -> Prior | None:
    """Everything earlier runs measured for this stage and part; None where there is nothing."""
    prior: Prior | None = None
    own = plan.pool.columns_folder(planned.use, planned.fingerprint)
    for path in storage.glob(
        plan.pool.columns_path(planned.use, "*" * 8, part).replace("*" * 8, "*")
    ):
        folder = path.rsplit("/", 1)[0]
        stats = parts.read_stats(path)
        if folder == own or stats.get("measure") != planned.measure or failed(stats):
            continue
        table = parts.read_table(path, sidecar_schema(planned).names)
        # keep is null where a row was refused above and never came to the stage
        known = np.asarray(table["keep"].is_valid())
        pictures = plan.pool.images_path(stats["fingerprint"], part)
        if planned.makes_images and not storage.exists(pictures):
            continue
        if prior is None:
            prior = Prior(planned, known, table, [pictures])
        elif (known & ~prior.known).any():
            prior = _joined(prior, known, table, pictures)
    return prior


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


def failed(stats: dict[str, object]) -> bool:
    """Whether every row of the part was an error: a server was down, say, and may be up now."""
    refused = stats.get("refused")
    return (
        bool(stats.get("rows_in"))
        and not stats.get("kept")
        and isinstance(refused, dict)
        and all(reason.startswith("error.") for reason in refused)
    )


def _names(planned: Planned) -> list[str]:
    names = planned.schema.names
    return [*names, *(name for name in ("keep", "reason") if name not in names)]
