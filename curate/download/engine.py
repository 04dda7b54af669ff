"""One rolling window over all rows that are expected: fetched, decoded, and handed out in row order.

Rows are begun in the order they were expected, also those of parts further on, so that a URL that
hangs holds nobody but itself: what comes in the meantime waits here. Fetching (`fetcher`) and decoding
(`decoders`) run beside the caller; this file only keeps the books:

* a job is one (URL, expected hash); rows with an equal one share it, and jobs of one URL share its GET;
* bodies not decoded yet hold at most half of ``memory_bytes`` (the fetcher sees to that), pictures not
  collected yet the other half: beyond it pictures wait in the journal, or, where that can't be read back
  at once (behind fsspec), bodies wait undecoded and nothing is begun but what ``collect`` waits for;
* what was finished is noted in the journal of the row's part before anybody sees it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

from curate.download import job as books
from curate.download.decoders import Decoders
from curate.download.fetcher import Body, Fetcher
from curate.download.guard import Policy, clean_url
from curate.download.job import Handed, Job, Key, Part, Row, note, whole
from curate.download.journal import Journal, Noted
from curate.download.outcomes import Outcome, Refused, refusal
from curate.download.pictures import PictureOptions
from curate.stage import StageError

WINDOW_JOBS = 8192  # begun and not collected, at most
FEW_WAITING = 512  # expected and not begun: fewer, and more may be expected
DECODER_BYTES = 1536 << 20  # address space of one decoding process
_FIRST_GUESS_BYTES = 128 << 10  # of a picture, before any came
_MOST_KNOWN = 4 * WINDOW_JOBS  # rows expected and not collected, those that a journal has included
# A wait with bodies held back: then one of them gives its room to what is waited for.
_STARVED_S = 0.1
_GUESS_OVER = 64  # outcomes that the guess of a picture's size is an average of


class Engine:
    """One worker's downloads. ``wire_bytes``: length of each body of the last ``collect``, None where none came.

    Raises StageError where fetching or decoding can't work at all. Thread-safe; has no thread of its own.
    """

    def __init__(
        self,
        policy: Policy,
        options: PictureOptions,
        *,
        most_requests: int,
        processes: int,
        decode_timeout_s: float,
        memory_bytes: int,
    ) -> None:
        self.wire_bytes: list[int | None] = []
        self._lock = threading.Condition(threading.RLock())
        self._rows: dict[Key, Row] = {}
        self._jobs: dict[tuple[str, str | None], Job] = {}
        self._gets: dict[str, list[Job]] = {}  # URL -> jobs that share the GET under way
        self._queue: deque[Job] = deque()
        self._parts: dict[str, Part] = {}  # in the order they were expected
        self._given: dict[Key, Row] = {}  # of the last collect, should they be asked for again
        self._awaited: list[set[Job]] = []
        self._held_back: dict[Job, tuple[Handed, bytes]] = {}  # fetched, and not to be decoded yet
        self._decoding = self._unfinished = 0  # jobs being decoded; begun and without outcome
        self._finished = 0  # jobs fetched, not collected
        self._held_bytes = 0
        self._most_held_bytes = memory_bytes // 2
        self._guess_bytes = float(_FIRST_GUESS_BYTES)
        self._fault: BaseException | None = None
        self._closed = False
        self._fetcher = Fetcher(
            policy,
            most_requests=most_requests,
            memory_bytes=memory_bytes // 2,
            done=self._on_fetched,
        )
        self._decoders = Decoders(
            options,
            processes=processes,
            timeout_s=decode_timeout_s,
            memory_bytes=DECODER_BYTES,
            done=self._on_decoded,
            failed=self._on_failed,
        )

    def expect(
        self,
        uids: Sequence[str],
        urls: Sequence[str | None],
        hashes: Sequence[str | None],
        notes: str,
    ) -> None:
        """Begin with rows of one part, in this order, behind all that was expected before.

        Rows that the journal in ``notes`` has are not fetched again; "" stands for no journal.
        """
        keys: list[Key] = list(zip(uids, urls, hashes, strict=True))
        is_known = all(key in self._rows for key in keys)
        noted = Journal(notes).read() if notes and not is_known else {}
        with self._lock:
            part = self._parts.get(notes)
            if part is None and notes:
                part = self._parts[notes] = Part(notes, Journal(notes))
            for key in keys:
                if key not in self._rows:
                    self._add(key, part, noted.get(key[0]))
            if part is not None and part.uncollected == 0:
                self._end_part(part)
            self._top_up()
            self._decoders.warm(self._unfinished)

    def wants_more(self) -> bool:
        """Whether yet more rows may be expected: there is room, and few of the expected ones wait."""
        with self._lock:
            waiting = len(self._queue) + self._fetcher.waiting()
            known = len(self._rows) - len(self._given)
            few = waiting < FEW_WAITING and known < _MOST_KNOWN
            return few and self._has_room(books.newest_reads_at_once(self._parts))

    def collect(
        self, uids: Sequence[str], urls: Sequence[str | None], hashes: Sequence[str | None]
    ) -> list[Outcome]:
        """The outcome of each row, in this order, once all are there. Rows never expected are begun now.

        The same rows may be asked for again, all or some, until other rows are.
        """
        keys: list[Key] = list(zip(uids, urls, hashes, strict=True))
        with self._lock:
            self._retire(keys)
            rows = [self._rows.get(key) or self._add(key, None, None) for key in keys]
            for row in rows:
                row.asked_by += 1
            try:
                self._give_up_before(rows)
                outcomes: list[Outcome] = []
                while len(outcomes) < len(rows):
                    self._wait_for(rows)
                    outcomes = self._read_back(rows)
            finally:
                for row in rows:
                    row.asked_by -= 1
            for row in rows:
                self._given[row.key] = row
                self._collected(row)
            self._top_up()
        self.wire_bytes = [outcome.wire_bytes for outcome in outcomes]
        return outcomes

    def costs(self) -> dict[str, float]:
        """What was spent since the last call, as the fetcher and the decoders tell it."""
        return {**self._fetcher.costs(), **self._decoders.costs()}

    def close(self) -> None:
        """End threads and children now. Whoever collects gets a StageError; what was noted stays."""
        with self._lock:
            self._closed = True
            self._fault = self._fault or StageError(books.CLOSED)
            self._lock.notify_all()
        self._fetcher.close()
        self._decoders.close()
        with self._lock:
            for part in self._parts.values():
                part.journal.close()
            self._parts.clear()

    # Called on threads of the fetcher and of the decoders.

    def _on_fetched(self, url: str, got: Body | Refused) -> None:
        with self._guarded() as usable:
            if not usable:
                return
            jobs = [job for job in self._gets.pop(url) if self._is_wanted(job)]
            if isinstance(got, Refused):
                for job in jobs:
                    self._finish(job, refusal(got))
            elif jobs:
                body = Handed(len(got.data), len(jobs))
                for job in jobs:
                    self._held_back[job] = body, got.data
                    if any(job in waited for waited in self._awaited) or books.waits_on_disk(job):
                        self._decode(job)
                self._decode_more()
            else:
                self._fetcher.release(len(got.data))
            self._top_up()

    def _on_decoded(self, key: tuple[Job, Handed], outcome: Outcome) -> None:
        job, body = key
        with self._guarded() as usable:
            if not usable:
                return
            self._decoding -= 1
            body.jobs -= 1
            if body.jobs == 0:
                self._fetcher.release(body.size_bytes)
            if outcome.wire_bytes is None:
                outcome = replace(outcome, wire_bytes=body.size_bytes)
            self._finish(job, outcome)
            self._decode_more()
            self._top_up()

    def _on_failed(self, fault: Exception) -> None:
        with self._guarded() as usable:
            if usable:
                raise fault

    @contextmanager
    def _guarded(self) -> Iterator[bool]:
        """The lock, and whether results still count; what goes wrong inside reaches whoever collects."""
        with self._lock:
            try:
                yield not self._closed
            except BaseException as fault:
                self._fault = fault
                self._lock.notify_all()

    # All below: with the lock held.

    def _add(self, key: Key, part: Part | None, noted: Noted | None) -> Row:
        _, url, expected_hash = key
        try:
            address, fault = clean_url(url).url, None
        except Refused as refused:
            address, fault = f"no URL: {url}", refused
        job = self._jobs.get((address, expected_hash))
        if job is None:
            job = self._jobs[address, expected_hash] = Job(address, expected_hash)
            if fault is not None:
                job.begun, job.outcome = True, refusal(fault)
            elif noted is not None:
                job.begun, job.outcome = True, noted.outcome
            else:
                self._queue.append(job)
        row = self._rows[key] = Row(key, job, part, noted.place if noted else None)
        job.rows.append(row)
        job.uncollected += 1
        if part is not None:
            part.rows[key] = row
            part.uncollected += 1
        if job.outcome is not None and noted is None and fault is None:
            note(row, whole(job))
        return row

    def _has_room(self, on_disk: bool = False) -> bool:
        """Whether a further job may begin; ``on_disk``: its picture can wait in a journal."""
        expected_bytes = self._held_bytes + self._unfinished * self._guess_bytes
        fits = on_disk or expected_bytes < self._most_held_bytes
        return fits and self._unfinished + self._finished < WINDOW_JOBS

    def _top_up(self) -> None:
        """Begin with what waits, as far as there is room."""
        while self._queue and self._has_room(books.waits_on_disk(self._queue[0])):
            job = self._queue.popleft()
            if not job.begun and self._is_wanted(job):
                self._begin(job)

    def _begin(self, job: Job) -> None:
        job.begun = True
        self._unfinished += 1
        sharing = self._gets.get(job.url)
        if sharing is not None:
            sharing.append(job)
            return
        self._gets[job.url] = [job]
        self._fetcher.submit(job.url, job.url)

    def _is_wanted(self, job: Job) -> bool:
        """Whether any row still asks for it; else it is out of the books."""
        if job.rows:
            return True
        self._unfinished -= job.begun and job.outcome is None
        return False

    def _decode(self, job: Job) -> None:
        body, data = self._held_back.pop(job)
        self._decoding += 1
        self._decoders.submit((job, body), data, job.expected_hash)

    def _decode_more(self, at_least: int = 0) -> None:
        """Decode what was held back, as far as there is room for pictures."""
        while self._held_back:
            coming_bytes = self._decoding * self._guess_bytes
            if at_least <= 0 and self._held_bytes + coming_bytes > self._most_held_bytes:
                return
            self._decode(next(iter(self._held_back)))
            at_least -= 1

    def _finish(self, job: Job, outcome: Outcome) -> None:
        size = len(outcome.image or b"")
        self._guess_bytes += (size - self._guess_bytes) / _GUESS_OVER
        if not self._is_wanted(job):
            return
        self._unfinished -= 1
        for row in job.rows:
            note(row, outcome)
        job.outcome = outcome
        awaited = [jobs for jobs in self._awaited if job in jobs]
        if job.uncollected:
            job.fetched = True
            self._finished += 1
            share = 4 if books.waits_on_disk(job) else 1  # it is read back at once
            over = self._held_bytes + size > self._most_held_bytes // share
            if over and not awaited and all(row.place for row in job.rows):
                job.outcome = replace(outcome, image=None)
            else:
                job.held_bytes = size
                self._held_bytes += size
        for jobs in awaited:
            jobs.discard(job)
        if not all(awaited):
            self._lock.notify_all()

    def _wait_for(self, rows: list[Row]) -> None:
        """Until all have an outcome. What isn't begun is begun, room or not: so this always ends."""
        jobs = {row.job for row in rows if row.job.outcome is None}
        try:
            for row in rows:
                if not row.job.begun:
                    self._begin(row.job)
            self._awaited.append(jobs)
            for job in jobs & self._held_back.keys():
                self._decode(job)
            while jobs and self._fault is None:
                if not self._lock.wait(_STARVED_S if self._held_back else None):
                    self._decode_more(at_least=1)
        except Exception as fault:
            raise books.unusable(fault) from fault
        finally:
            self._awaited = [others for others in self._awaited if others is not jobs]
        if self._fault is not None:
            raise books.unusable(self._fault) from self._fault

    def _read_back(self, rows: list[Row]) -> list[Outcome]:
        """The outcomes with their pictures; shorter where a journal lost one, which is then begun anew."""
        found = []
        for row in rows:
            outcome = whole(row.job)
            if outcome is not None:
                found.append(outcome)
                continue
            job = row.job
            self._finished -= job.fetched
            job.begun, job.outcome, job.fetched = False, None, False
            for other in job.rows:
                other.place = None
        return found

    def _collected(self, row: Row) -> None:
        if row.collected:
            return
        row.collected = True
        job, part = row.job, row.part
        job.uncollected -= 1
        if job.uncollected == 0:
            self._held_bytes -= job.held_bytes
            self._finished -= job.fetched
            job.held_bytes, job.fetched = 0, False
            self._decode_more()
        if part is not None:
            part.uncollected -= 1
            if part.uncollected == 0:
                self._end_part(part)

    def _end_part(self, part: Part) -> None:
        """All its rows are handed out: the runner commits it and removes its notes."""
        if self._parts.pop(part.notes, None) is not None:
            part.journal.close(keep=False)

    def _drop(self, row: Row) -> None:
        self._collected(row)
        del self._rows[row.key]
        row.job.rows.remove(row)
        if row.part is not None:
            row.part.rows.pop(row.key, None)
        if not row.job.rows:
            self._jobs.pop((row.job.url, row.job.expected_hash), None)

    def _retire(self, keys: list[Key]) -> None:
        """Forget the rows of the last collect, once other rows are asked for."""
        if all(key in self._given for key in keys):
            return
        again = set(keys)
        for row in [r for r in self._given.values() if r.key not in again and not r.asked_by]:
            del self._given[row.key]
            self._drop(row)

    def _give_up_before(self, rows: list[Row]) -> None:
        """Drop rows of earlier parts that nobody came for, where they take the room of others."""
        wanted = {row.part for row in rows if row.part is not None}
        if not wanted or self._has_room():
            return
        for part in takewhile(lambda part: part not in wanted, list(self._parts.values())):
            for row in books.unclaimed(part):
                self._drop(row)
