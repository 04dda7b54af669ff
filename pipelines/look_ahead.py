"""A stage is told what it will get before it gets it, so that a download never waits for the end of a part.

One step's first stage may look ahead (``RowStage.looks_ahead``). It hears of the part at hand, then of
parts further on, one at a time, as long as it wants more. A thread asks it while ``process`` waits: then,
for a few slow hosts, it can begin with thousands of rows of the parts that follow. What it notes of a part
lies in ``POOL/work/<measure8>-notes/part-00003`` until that part is committed. The folder's name says what
the values hang on, so that a run with another threshold above finds the notes of one that was killed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract import storage
from curate.stage import RowStage, StageError
from pipelines import reuse
from pipelines.part import alive_mask, is_done, load_columns
from pipelines.plan import CurationPlan, Planned

MOST_PARTS = 8  # that a stage hears of beyond the one at hand; also the longest span of one task
_SPANS_PER_WORKER = 3  # so that no worker is left without work for long
_ASK_EVERY_S = 0.1
_NOTES = "-notes"
# Stage -> its state, and the notes of the parts that this state has heard of.
_TOLD: dict[str, tuple[Any, set[str]]] = {}


def does(planned: Planned) -> bool:
    """Whether a stage begins with rows before it gets them."""
    return isinstance(planned.stage, RowStage) and planned.stage.looks_ahead


def notes_root(plan: CurationPlan, planned: Planned) -> str:
    """The folder of a stage's notes, of all parts."""
    return plan.pool.work_folder(planned.measure) + _NOTES


def notes_of(plan: CurationPlan, planned: Planned, part: int) -> str:
    """The folder of a stage's notes of one part."""
    return storage.join(notes_root(plan, planned), f"part-{part:05d}")


def forget_notes(plan: CurationPlan) -> None:
    """Drop what killed runs left, also those with other options: for a run that ended whole."""
    for folder in storage.listed(storage.join(plan.pool_root, "work")):
        if folder.endswith(_NOTES):
            storage.remove(folder)


def spans(
    todo: list[int], workers: int, is_ahead: bool
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(parts that one call runs, parts that follow) for all parts in ``todo``.

    ``workers``: processes the calls are spread over; 0 where one process runs all of them in order, and
    then remembers what it has begun with.
    """
    if not is_ahead:
        return [((number,), ()) for number in todo]
    if not workers:
        return [
            ((number,), tuple(todo[place + 1 : place + 1 + MOST_PARTS]))
            for place, number in enumerate(todo)
        ]
    length = max(1, min(MOST_PARTS, len(todo) // (_SPANS_PER_WORKER * workers)))
    return [(tuple(todo[n : n + length]), ()) for n in range(0, len(todo), length)]


def coming(
    plan: CurationPlan, index: int, part: int, earlier: tuple[reuse.Run, ...] | None = None
) -> pa.Table:
    """uid and what stage ``index`` reads, of the rows of a part that it will be asked for."""
    planned = plan.stages[index]
    wanted = alive_mask(plan, planned.upstream, part)
    prior = reuse.find(plan, planned, part, earlier)
    if prior is not None:
        wanted &= ~prior.known
    return chosen(load_columns(plan, planned.reads, index, part), planned, wanted)


def chosen(table: pa.Table, planned: Planned, wanted: np.ndarray) -> pa.Table:
    """uid and the stage's own columns of the wanted rows. ``wanted``: bool of shape (rows,)."""
    names = ["uid", *(name for name in planned.reads if name != "uid")]
    return table.select(names).filter(pa.array(wanted))


class LookAhead:
    """Tells one stage of the part at hand and of those that follow. For one part; ended by ``end``."""

    def __init__(
        self,
        plan: CurationPlan,
        index: int,
        part: int,
        upcoming: tuple[int, ...],
        earlier: tuple[reuse.Run, ...],
        state: Any,
    ) -> None:
        self._plan, self._index, self._part, self._earlier = plan, index, part, earlier
        self._planned, self._state = plan.stages[index], state
        self._upcoming = deque(upcoming)
        before, self._told = _TOLD.get(self._planned.fingerprint, (None, set()))
        if before is not state:
            self._told = set()
        _TOLD[self._planned.fingerprint] = (state, self._told)
        self._asking, self._ended = threading.Lock(), threading.Event()
        self._fault: Exception | None = None
        self._thread: threading.Thread | None = None

    def begin(self, rows: pa.Table) -> None:
        """Tell of the part at hand, then of others for as long as the part takes."""
        self._tell(self._part, lambda: rows)
        self.top_up()
        if self._upcoming:
            self._thread = threading.Thread(target=self._keep_on, name="look-ahead", daemon=True)
            self._thread.start()

    def top_up(self) -> None:
        """Tell of further parts, as many as the stage wants now. Raises what went wrong meanwhile."""
        if self._fault is not None:
            raise self._fault
        if not self._asking.acquire(blocking=False):
            return  # the thread is at it
        try:
            while self._upcoming and self._planned.stage.wants_more(self._state):
                number = self._upcoming.popleft()
                if not is_done(self._plan, self._planned, number):
                    self._tell(number, self._rows_of(number))
        finally:
            self._asking.release()

    def end(self, committed: bool) -> None:
        """The part is over; the notes of one that is committed are not needed any more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        notes = notes_of(self._plan, self._planned, self._part)
        self._told.discard(notes)
        if committed:
            storage.remove(notes)

    def _rows_of(self, number: int) -> Callable[[], pa.Table]:
        return lambda: coming(self._plan, self._index, number, self._earlier)

    def _tell(self, number: int, rows: Callable[[], pa.Table]) -> None:
        notes = notes_of(self._plan, self._planned, number)
        if notes in self._told:
            return
        try:
            if len(found := rows()):
                self._planned.stage.expect(found, self._state, notes)
        except StageError:
            raise
        except Exception as fault:
            raise StageError(
                f"{self._planned.use} could not begin with part {number}: {type(fault).__name__}: {fault}. "
                f"hint: is {notes} damaged? it may be deleted"
            ) from fault
        self._told.add(notes)

    def _keep_on(self) -> None:
        while self._upcoming and not self._ended.wait(_ASK_EVERY_S):
            try:
                self.top_up()
            except Exception as fault:
                self._fault = fault  # raised where the part is run
                return
