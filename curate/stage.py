"""What a curation component is: SourceStage, RowStage, GlobalStage, Resources.

A component is a frozen keyword-only dataclass in a file of its own; its fields are the recipe's
options. A stage returns only its new columns, for the same rows in the same order; the runner
appends them. Two columns are special in what a stage writes:

* ``keep`` and ``reason`` (see :func:`decision`): a row whose ``reason`` is not null is refused and
  skipped by everything below. Filters write them, and so may any stage that can fail for a row.
* ``image`` (binary): an encoded picture. It goes to the pool's ``images/`` tars, never to parquet.

Virtual columns that any stage may name in ``reads()``: ``image`` (the newest encoded picture),
``part`` and ``row`` (int64; where the row stands in the source's order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from curate.contract.done import Written

KEEP = pa.field("keep", pa.bool_())
REASON = pa.field("reason", pa.dictionary(pa.int32(), pa.string()))
VIRTUAL_COLUMNS = ("image", "part", "row")


class StageError(Exception):
    """The stage cannot go on for any row (service down, model file unreadable): the run stops.

    What is committed stays, so the same command resumes. A fault of one row is never a
    StageError: give that row a reason, or let the exception out of ``process`` and the runner
    isolates the row.
    """


@dataclass(frozen=True)
class Resources:
    """What one task of a stage asks of the scheduler."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0  # asked for, and the most that a task may hold; 0: no limit of its own
    keep: bool = (
        False  # open() is dear: under Ray its processes are kept for the stage (as with a GPU)
    )


@dataclass(frozen=True)
class Part:
    """One resumable slice of the source. ``payload`` is JSON and means something to its source only."""

    index: int
    payload: dict[str, Any]


def path_option(default: Any = ...) -> Any:
    """A field that holds a local path or fsspec URL: made absolute by the recipe loader.

    The fingerprint takes the file's content (through ``Stage.inputs``) and not its name.
    """
    return _option({"path": True}, default)


def tuning_option(default: Any = ...) -> Any:
    """A field that changes speed or access but never the output: left out of the fingerprint."""
    return _option({"tuning": True}, default)


def _option(metadata: dict[str, bool], default: Any) -> Any:
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


class Stage:
    """Base of every curation component. Subclasses are ``@dataclass(frozen=True, kw_only=True)``."""

    version: ClassVar[int] = 1  # raise it when equal options give different output
    resources: ClassVar[Resources] = Resources()
    cures: ClassVar[Mapping[str, str]] = {}  # kind of error -> what a user can do about it
    # Kinds of error that stay what they are when a later run meets the row; others are asked again.
    lasting_errors: ClassVar[tuple[str, ...]] = ()

    def reads(self) -> tuple[str, ...]:
        """Columns this stage needs. The plan checks that something above provides each."""
        raise NotImplementedError

    def writes(self) -> pa.Schema:
        """The new columns, in order."""
        raise NotImplementedError

    def inputs(self) -> tuple[str, ...]:
        """Paths of files whose content decides the output (entry lists, weights)."""
        return ()

    def identity(self) -> str:
        """Whatever else decides the output, as text: names and sizes of files too many to hash."""
        return ""

    def check(self) -> None:
        """Raise ValueError("what was found. hint: ...") for options that can't work. No heavy import."""

    def check_columns(self, types: Mapping[str, pa.DataType]) -> None:
        """Raise ValueError for columns of a type this stage can't read. ``types``: of ``reads()``."""

    def check_above(self, above: Sequence[Stage]) -> None:
        """Raise ValueError for stages this one can't stand on. ``above``: all above it, the source first.

        Asked before the columns of ``reads()`` are looked for, so a better hint can be given here.
        """


class SourceStage(Stage):
    """Where rows come from."""

    def reads(self) -> tuple[str, ...]:
        return ()

    def writes(self) -> pa.Schema:
        """The source's own columns beyond uid, url, caption, keep and reason.

        A source that brings pictures with it includes ``image``.
        """
        return pa.schema([])

    def parts(self) -> list[Part]:
        """The slices of the source, in source order. Raises ValueError for an unusable source."""
        raise NotImplementedError

    def sizes_bytes(self) -> dict[str, int]:
        """Size of every file by its path, so that a file that changed is told from one that was added."""
        return {}

    def versions(self) -> Mapping[str, tuple[int, str]]:
        """(size, what its server calls this version) of every file by its path, as a listing told it.

        A large file behind a URL that has a version is known by it and not read; '' means none.
        """
        return {}

    def produce(self, part: Part) -> Iterator[pa.Table]:
        """Tables with uid, url, caption, keep, reason and the columns of ``writes()``.

        Every row of the source appears exactly once, bad rows with a reason ``error.<stage>.<kind>``.
        """
        raise NotImplementedError


class RowStage(Stage):
    """New columns for each row on its own. The same output for any way to cut the rows in batches."""

    batch_rows: ClassVar[int] = 64
    # Whether the stage begins with rows before ``process`` gets them (a download); see ``expect``.
    looks_ahead: ClassVar[bool] = False

    def open(self) -> Any:
        """Load models and clients, once per worker process. The result is passed to ``process``.

        If it has a method ``close()``, that is called when a run in this process ends.
        """
        return None

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        """The columns of ``writes()`` for the rows of ``batch``, same rows, same order."""
        raise NotImplementedError

    def expect(self, rows: pa.Table, state: Any, notes: str) -> None:
        """Rows of one part that ``process`` will get soon, in order; called where ``looks_ahead``.

        ``rows`` has uid and the columns of ``reads()``. ``notes`` is a folder for this part and stage (a path or
        fsspec URL, made by whoever writes first): what is noted there survives a kill, is found by the next
        run that expects the part, and is removed once the part is committed. Through fsspec it is written by
        a thread of its own, since a transaction for pictures may be open in this one. For parts further on it
        is called by a thread while ``process`` runs. ``process`` must do without.
        """

    def wants_more(self, state: Any) -> bool:
        """Whether the stage could begin with yet more rows, of parts further on."""
        return False

    def costs(self, state: Any) -> dict[str, float]:
        """What was spent since the last call, as sums: seconds (``fetch_cpu_s``), numbers (``connections``)."""
        return {}


class GlobalStage(Stage):
    """A decision that must see the whole pool: map, merge, map. Nothing in it knows Ray.

    summarize(part) -> merge(partials) -> close(state) -> settle(states) -> decide(part, state)

    With ``bucket_by`` set, the runner splits every partial by a hash of that column into buckets
    and merges and closes each bucket alone, so that no process ever holds the pool. If the last
    state has a column ``part``, each ``decide`` call is given only the rows of its own part.
    """

    bucket_by: ClassVar[str | None] = None
    bucket_rows: ClassVar[int] = 2_000_000  # rows of the pool for which one more bucket is made
    # The options that ``summarize`` hangs on, for a stage whose partials are small and worth keeping:
    # a part whose living rows are as before is then not summarized again. None keeps nothing.
    summary_options: ClassVar[tuple[str, ...] | None] = None

    def rows_wanted(self) -> int | None:
        """The rows that shall be left after the downloads below, where the stage makes up for their losses."""
        return None

    def after_losses(self, success_frac: float) -> GlobalStage:
        """The stage that keeps so many more rows; asked where ``rows_wanted()`` says a number.

        ``success_frac``: the share of its kept rows that came, 1.0 before any did. A smaller share must keep
        all rows that a larger one keeps, so that nothing is fetched in vain.
        """
        return self

    def summarize(self, part: pa.Table) -> pa.Table:
        """A partial state from the kept rows of one part."""
        raise NotImplementedError

    def merge(self, partials: Sequence[pa.Table]) -> pa.Table:
        """One partial from several; associative, and independent of their order."""
        raise NotImplementedError

    def close(self, state: pa.Table) -> pa.Table:
        """What is left of one bucket once all of it is merged, e.g. the pairs found in it."""
        return state

    def settle(self, states: Sequence[pa.Table]) -> pa.Table:
        """The pool's one state from the closed buckets. One worker does it where this is overridden."""
        return pa.concat_tables(states)

    def passes(self) -> int:
        """How often the parts are looked at, at most, before anything is decided; rarely more than once."""
        return 1

    def enough(self, state: pa.Table) -> bool:
        """Whether the passes that are left would change nothing."""
        return False

    def look_again(self, part: pa.Table, state: pa.Table) -> pa.Table:
        """A partial for the next pass from one part, with what is known so far."""
        raise NotImplementedError

    def together(self, partials: Sequence[pa.Table]) -> pa.Table:
        """Several partials of ``look_again`` as one: where they are sums, the sum, which does not grow.

        A stage that has it may be given fewer partials in ``adjust`` than there are parts.
        """
        raise NotImplementedError

    def adjust(self, state: pa.Table, partials: Sequence[pa.Table]) -> pa.Table:
        """The state after one more pass; the same for any order of the partials."""
        raise NotImplementedError

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        """The columns of ``writes()`` for the kept rows of one part, same rows, same order."""
        raise NotImplementedError


def pool_state(stage: GlobalStage, parts: Callable[[], Iterable[pa.Table]]) -> pa.Table:
    """The state that ``decide`` gets, worked out in this process. ``parts()`` yields the tables anew."""
    state = stage.settle([stage.close(stage.merge([stage.summarize(part) for part in parts()]))])
    for _ in range(1, stage.passes()):
        if stage.enough(state):
            break
        state = stage.adjust(state, [stage.look_again(part, state) for part in parts()])
    return state


Pictures = Callable[[list[str]], list[bytes | None]]  # uids -> their encoded pictures


class ShardStage(Stage):
    """How kept rows become tars: pack each part, then assemble each shard from the packed parts."""

    def reads(self) -> tuple[str, ...]:
        return ("image",)

    def writes(self) -> pa.Schema:
        return pa.schema([])

    def pack(
        self, samples: pa.Table, pictures: Pictures, blocks_path: str, index_path: str
    ) -> dict[int, int]:
        """Write the kept rows of one part as sorted sample blocks. Returns counts by bucket of the order.

        ``samples`` has every column but ``image``; ``pictures`` reads some of those, so that no process
        ever holds all pictures of a part.
        """
        raise NotImplementedError

    def slices(self, histogram: Mapping[int, int]) -> list[tuple[int, ...]]:
        """One slice of the order per tar, from the counts of all packed parts together."""
        raise NotImplementedError

    def assemble(
        self, piece: tuple[int, ...], packed: Sequence[tuple[str, str]], path: str
    ) -> pa.Table:
        """Write one tar, a slice of all packed parts. Returns its index (contract/shards.INDEX_SCHEMA)."""
        raise NotImplementedError

    def gather(self, index_paths: Mapping[int, str], cuts: int, path: str) -> Written:
        """Write the indexes of several packed parts (by number) as one file of ``cuts`` pieces of the order."""
        raise NotImplementedError

    def assemble_gathered(
        self,
        piece: tuple[int, ...],
        gathered: Sequence[str],
        cuts: int,
        blocks_path: Callable[[int], str],
        path: str,
    ) -> pa.Table:
        """``assemble`` out of what ``gather`` wrote: it reads its own pieces of the order, and no more."""
        raise NotImplementedError


def decision(reasons: Iterable[str | None]) -> list[pa.Array]:
    """The ``keep`` and ``reason`` columns for a list with one reason per row, None where kept."""
    found = list(reasons)
    keep = pa.array([reason is None for reason in found], pa.bool_())
    return [keep, pa.array(found, pa.string()).dictionary_encode().cast(REASON.type)]


def error(use: str, kind: str) -> str:
    """The reason of a row that a stage failed on: ``error.<stage>.<kind>``."""
    return f"error.{use}.{kind}"
