"""Planted against found: precision and recall per fault, from the ledger and the world's truth.

A filter can only judge the rows that reach it. So a fault counts as planted for its stage where
the row was kept or was refused by that stage or a later one; a row that balancing dropped earlier
is no miss of the download. A duplicate counts only if an equal, earlier row reached the stage too:
of a pair whose first row was refused before, the second is rightly kept.

    recall    = found / reached      found: refused with one of the reasons that fit the fault
    precision = refused that carry a fault with the same reasons / refused with those reasons

Faults that one reason stands for (the two kinds of text, the four kinds of bad link) thus share
their precision; ``reasons`` tells them apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curate.contract import parts

_TEXT = ("filter.threshold", ("threshold.text_area_frac",))
_LINK = ("download.fetch", ("error.download.fetch.",))
_SOURCE = ("source.url_table", ("error.source.url_table.",))
# Fault -> the stage that looks for it, and how its reasons begin.
LOOKED_FOR: dict[str, tuple[str, tuple[str, ...]]] = {
    "text-parrot": _TEXT,
    "text-unrelated": _TEXT,
    "dead-link": _LINK,
    "slow-link": _LINK,
    "html-as-jpeg": _LINK,
    "truncated-jpeg": _LINK,
    "duplicate-pair": ("filter.duplicate_pair", ("duplicate.pair",)),
    "duplicate-image": ("filter.duplicate_image", ("duplicate.image",)),
    "junk-caption": ("filter.metadata_balance", ("unmatched",)),
    "null-url": _SOURCE,
    "null-caption": _SOURCE,
    "huge-caption": _SOURCE,
    "not-utf8-caption": _SOURCE,
    "wrong-caption": ("", ()),
}
_SOURCE_POSITION = -1


@dataclass(frozen=True)
class FaultScore:
    """One line of the table. Precision and recall are None where nothing was there to judge."""

    fault: str
    looked_for: bool  # whether the recipe has the stage that looks for it
    planted: int  # rows in the world
    reached: int  # of these, rows that the stage was given
    found: int
    recall: float | None
    precision: float | None
    reasons: dict[str, int]  # what became of all planted rows; "kept" among them


@dataclass(frozen=True)
class _Judged:
    """One source row: what was planted and what the ledger says."""

    fault: str | None
    first_row: int | None
    reason: str | None
    stage: str | None


def score(ledger_path: str, truth_path: str, stages: Sequence[str]) -> list[FaultScore]:
    """The table for one curation run, faults in the order of LOOKED_FOR.

    ``stages`` are the recipe's stages in order, as the ledger names them. Raises ValueError if the
    two files are not about the same rows, or if the ledger names a stage that is not in ``stages``.
    """
    rows = _join(
        parts.read_table(ledger_path), parts.read_table(truth_path), f"{ledger_path}, {truth_path}"
    )
    positions = {stage: position for position, stage in reversed(list(enumerate(stages)))}
    positions |= {
        stage: _SOURCE_POSITION
        for stage in {row.stage for row in rows}
        if stage and stage.startswith("source.")
    }
    unknown = {row.stage for row in rows if row.stage is not None} - set(positions)
    if unknown:
        raise ValueError(
            f"{ledger_path}: refused by {sorted(unknown)}, stages given: {list(stages)}. hint: pass all of the recipe's stages"
        )
    return [
        _score_one(fault, rows, positions)
        for fault in LOOKED_FOR
        if any(row.fault == fault for row in rows)
    ]


def _join(ledger: Any, truth: Any, where: str) -> list[_Judged]:
    """Truth rows with their ledger rows; equal uids are joined in source order."""
    waiting: dict[str, list[tuple[str | None, str | None]]] = defaultdict(list)
    entries = zip(
        *(ledger[name].to_pylist() for name in ("uid", "keep", "reason", "stage")), strict=True
    )
    for uid, keep, reason, stage in entries:
        waiting[uid].append((None, None) if keep else (reason, stage))
    if ledger.num_rows != truth.num_rows or Counter(truth["uid"].to_pylist()) != {
        uid: len(found) for uid, found in waiting.items()
    }:
        raise ValueError(
            f"{where}: {ledger.num_rows} and {truth.num_rows} rows, not the same uids. hint: both must come from one world and one base URL"
        )
    taken: Counter[str] = Counter()
    rows = []
    planted = zip(*(truth[name].to_pylist() for name in ("uid", "fault", "first_row")), strict=True)
    for uid, fault, first_row in planted:
        reason, stage = waiting[uid][taken[uid]]
        taken[uid] += 1
        rows.append(_Judged(fault, first_row, reason, stage))
    return rows


def _score_one(fault: str, rows: list[_Judged], positions: dict[str, int]) -> FaultScore:
    stage, beginnings = LOOKED_FOR[fault]
    planted = [row for row in rows if row.fault == fault]
    reasons = dict(Counter(row.reason or "kept" for row in planted).most_common())
    position = _SOURCE_POSITION if stage.startswith("source.") else positions.get(stage)
    if position is None:
        return FaultScore(fault, False, len(planted), 0, 0, None, None, reasons)
    reached = [row for row in planted if _reached(row, position, positions, rows)]
    found = sum(_fits(row.reason, beginnings) for row in reached)
    refused = [row for row in rows if _fits(row.reason, beginnings)]
    right = sum(
        row.fault is not None and LOOKED_FOR[row.fault] == (stage, beginnings) for row in refused
    )
    return FaultScore(
        fault,
        True,
        len(planted),
        len(reached),
        found,
        found / len(reached) if reached else None,
        right / len(refused) if refused else None,
        reasons,
    )


def _reached(row: _Judged, position: int, positions: dict[str, int], rows: list[_Judged]) -> bool:
    """Whether the stage at ``position`` was given this row, and for a duplicate the row it repeats."""
    if row.stage is not None and positions[row.stage] < position:
        return False
    return row.first_row is None or _reached(rows[row.first_row], position, positions, rows)


def _fits(reason: str | None, beginnings: tuple[str, ...]) -> bool:
    """Whether a reason is one of a fault's; a filter may prefix its reasons with "filter."."""
    return reason is not None and reason.removeprefix("filter.").startswith(beginnings)


def table(scores: Sequence[FaultScore]) -> str:
    """The scores as aligned plain text, one fault a line."""
    lines = [
        f"{'fault':<17} {'planted':>7} {'reached':>7} {'found':>6} {'recall':>7} {'precision':>9}"
    ]
    for line in scores:
        if line.looked_for:
            judged = f"{line.reached:>7} {line.found:>6} {_share(line.recall):>7} {_share(line.precision):>9}"
        else:
            judged = "  nothing in this recipe looks for it"
        lines.append(f"{line.fault:<17} {line.planted:>7} {judged}")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
