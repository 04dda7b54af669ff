"""What the engine writes in its books: rows, the jobs they wait for, and the parts they are of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from curate.download.journal import Journal, Place
from curate.download.outcomes import Outcome
from curate.stage import StageError

CLOSED = "download.fetch was closed while rows were waited for. hint: run it again; it goes on where it was"
Key = tuple[str, str | None, str | None]  # uid, url, expected hash


@dataclass(eq=False, slots=True)
class Job:
    """One URL and hash: it waits in the queue, then is begun, then has an outcome."""

    url: str
    expected_hash: str | None
    rows: list[Row] = field(default_factory=list)
    uncollected: int = 0  # of these rows
    begun: bool = False
    outcome: Outcome | None = None  # its picture may be in a journal only
    held_bytes: int = 0  # of a picture that waits in memory
    fetched: bool = False  # in this run, and waiting to be collected


@dataclass(eq=False, slots=True)
class Part:
    """The rows that were expected with one folder of notes."""

    notes: str
    journal: Journal
    rows: dict[Key, Row] = field(default_factory=dict)  # still in the window
    uncollected: int = 0


@dataclass(eq=False, slots=True)
class Row:
    """One row of the window. ``place``: where the journal of its own part has the picture."""

    key: Key
    job: Job
    part: Part | None
    place: Place | None
    collected: bool = False
    asked_by: int = 0  # threads that are collecting it


@dataclass(eq=False, slots=True)
class Handed:
    """A body that is being decoded for so many jobs."""

    size_bytes: int
    jobs: int


def note(row: Row, outcome: Outcome | None) -> None:
    """Into the journal of the row's part, unless it is there."""
    if row.part is not None and row.place is None and outcome is not None:
        row.place = row.part.journal.write(row.key[0], outcome)


def waits_on_disk(job: Job) -> bool:
    """Whether its picture needs no memory while it waits: each row's journal has it and can be read at once."""
    return all(row.part is not None and row.part.journal.reads_at_once for row in job.rows)


def newest_reads_at_once(parts: dict[str, Part]) -> bool:
    """Whether pictures of the part expected last can wait in its journal."""
    newest = next(reversed(parts.values()), None)
    return newest is not None and newest.journal.reads_at_once


def unclaimed(part: Part) -> list[Row]:
    """Its rows that nobody has collected, and nobody is collecting."""
    return [row for row in part.rows.values() if not (row.collected or row.asked_by)]


def whole(job: Job) -> Outcome | None:
    """A job's outcome with its picture, read back where it isn't in memory; None where no journal has it."""
    outcome = job.outcome
    if outcome is None or outcome.kind is not None or outcome.image is not None:
        return outcome
    for row in job.rows:
        image = None if row.place is None else row.place.read()
        if image is not None:
            return replace(outcome, image=image)
    return None


def unusable(fault: BaseException) -> StageError:
    """A fault as what ends the run, with a hint."""
    if isinstance(fault, StageError):
        return fault
    words = f"download.fetch can't go on: {type(fault).__name__}: {fault}"
    missing = ". hint: if a package is missing, pip install 'clip-pipe[curate]'"
    return StageError(words if "hint: " in words else words + missing)
