"""What a report can say, as plain data. Every section may be missing; the page then leaves it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KEPT = "kept"


@dataclass(frozen=True)
class FunnelRow:
    """One stage: the rows it was given, and what came of them."""

    stage: str  # its sidecar folder's name, unique in a run
    use: str
    rows_in: int
    kept: int
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> rows
    seconds: float = 0.0
    options: str = ""  # those that are required or differ from their defaults, as in a recipe


@dataclass(frozen=True)
class Totals:
    """The whole run. ``ledger_rows`` is counted in the ledger itself and must equal ``rows_in``."""

    rows_in: int
    kept: int
    ledger_rows: int
    reasons: Mapping[str, int] = field(default_factory=dict)  # from the ledger


@dataclass(frozen=True)
class EntryRow:
    """One entry of the entry list, with the rows that match it."""

    text: str
    before: int
    after: int


@dataclass(frozen=True)
class EntryBalance:
    """Rows per entry before and after balancing: the ends of the list, and the curve between."""

    head: Sequence[EntryRow]  # the most frequent, by the count before
    tail: Sequence[EntryRow]  # the least frequent that were matched at all
    before: Sequence[tuple[int, int]]  # (rank from 1, rows), most frequent first, thinned out
    after: Sequence[tuple[int, int]]
    n_before: int  # entries matched at least once
    n_after: int


@dataclass(frozen=True)
class BalanceGroup:
    """The entries of one group (a language; all of them where none are told apart) and their t."""

    group: str
    t: int
    head_entries: int  # with t rows or more
    head_matches: int
    tail_entries: int
    tail_matches: int


@dataclass(frozen=True)
class Balance:
    """The threshold that rows were balanced with, and how many were to be expected of it."""

    name: str  # the stage's
    groups: Sequence[
        BalanceGroup
    ]  # those with the most matches first; not all where there are many
    n_groups: int
    kept: int
    expected: float | None = None  # the sum of the rows' chances
    sigma: float | None = None  # standard deviation of the number kept, in rows


@dataclass(frozen=True)
class Overlap:
    """What of evaluation sets was found among the rows."""

    rows: int  # rows that repeat an item
    items: int  # items that are repeated
    most: Sequence[tuple[str, int]]  # (item, rows), the most frequent; not all where there are many


@dataclass(frozen=True)
class Thumb:
    """One sample: its picture where there is one, and its words. All of it is hostile input."""

    uid: str
    image: bytes | None
    caption: str
    captions: Sequence[str] = ()
    note: str = ""
    repeats: Thumb | None = None  # the row that stays in this one's stead
    item: str = ""  # what of an evaluation set it repeats


@dataclass(frozen=True)
class OutcomeRow:
    """What became of some rows of a download. ``message`` and ``url`` are of the first such row."""

    reason: str  # "" for those that came
    rows: int
    meaning: str = ""
    message: str = ""
    url: str = ""


@dataclass(frozen=True)
class HostRow:
    """The rows of one host."""

    host: str  # as in the URL, lower-case, without a port; "" where the URL has none
    rows: int
    ok: int
    reason: str = ""  # the most frequent one, "" where all came
    reason_rows: int = 0


@dataclass(frozen=True)
class Hosts:
    """Rows by host: the greatest, and those with the most failures."""

    most: Sequence[HostRow]
    failed: Sequence[HostRow]  # none where ``most`` has every host
    found: int  # hosts that were counted to the end
    dropped_rows: int = 0  # rows of hosts that were given up on the way, to hold few
    uncertain: int = 0  # as many rows of a host above may be among those, at most


@dataclass(frozen=True)
class Cost:
    """Processor time of one kind of work, per picture."""

    name: str
    cpu_ms: float


@dataclass(frozen=True)
class Costs:
    """What the pictures of a download took, in all runs of the pool that fetched with these options."""

    pictures: int  # bodies that came, also those that were no pictures
    cpu: Sequence[Cost]
    attempts: int  # retries and redirects among them, and those that found nobody
    connections: int
    handshakes: int  # of TLS
    handshake_wall_ms: float  # of one, waiting included
    wire_bytes: int


@dataclass(frozen=True)
class Placeholder:
    """One picture, byte for byte, that many URLs gave."""

    thumb: Thumb
    rows: int
    urls: int  # different ones
    more: bool = False  # whether there are more URLs than were counted


@dataclass(frozen=True)
class Download:
    """A stage that fetched pictures: what became of the rows it was given."""

    name: str  # the stage's
    rows: int
    outcomes: Sequence[OutcomeRow]  # most frequent first
    hosts: Hosts
    again: int = 0  # rows that another try may bring
    costs: Costs | None = None
    placeholders: Sequence[Placeholder] = ()


@dataclass(frozen=True)
class FaultRow:
    """One planted fault of the demo world: how many, and how many the filters found."""

    name: str
    planted: int
    found: int | None  # None where the recipe has no stage that looks for it
    precision: float | None  # None where nothing was found
    recall: float | None  # None where nothing was planted
    reached: int | None = None  # planted rows that the stage was given; earlier stages refuse some


@dataclass(frozen=True)
class Report:
    """All of a run, or of several compared. Captions, URLs and texts are escaped by the page."""

    title: str
    summary: str = ""
    funnel: Sequence[FunnelRow] = ()
    totals: Totals | None = None
    faults: Sequence[FaultRow] = ()
    faults_note: str = ""
    entries: EntryBalance | None = None
    balance: Balance | None = None
    overlap: Overlap | None = None
    downloads: Sequence[Download] = ()
    thumbnails: Mapping[str, Sequence[Thumb]] = field(default_factory=dict)  # KEPT or reason
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # by run
    evaluations: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)  # recipe, fingerprint, versions
