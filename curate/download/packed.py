"""Bodies that came whole and wait: to be inflated, for which there must be room, or for the consumer."""

from __future__ import annotations

from collections import deque

from curate.download.desk import Job, Memory
from curate.download.guard import inflated
from curate.download.outcomes import Refused


class Packed:
    """A queue of bodies as they were sent; their bytes count as in flight until they leave it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._bodies: deque[tuple[Job, bytes, str]] = deque()
        self._tried_bytes = 0

    def __len__(self) -> int:
        return len(self._bodies)

    @property
    def wants_room(self) -> bool:
        """Whether the first of them waits for bytes to be given back, and not for the consumer alone."""
        return bool(self._bodies) and not self._memory.is_full_hands

    def push(self, job: Job, raw: bytes, coding: str) -> None:
        """Add a body; ``coding`` as `guard.inflated` takes it, or ""."""
        self._bodies.append((job, raw, coding))
        self._memory.in_flight_bytes += len(raw)

    def pop(self, *, alone: bool) -> tuple[Job, bytes | Refused] | None:
        """The first one as it is handed out, None where it has to wait. ``alone``: nothing else would give room."""
        if not self._bodies:
            return None
        job, raw, coding = self._bodies[0]
        if self._memory.is_full_hands and job.robots_of is None:
            return None
        found: bytes | Refused | None = raw
        if coding:
            alone = alone and not self._memory.handed_out
            limit = job.limit_bytes if alone else min(job.limit_bytes, self._memory.room_bytes)
            # Each try begins anew, so there is one for each doubling of the room.
            if limit < job.limit_bytes and limit < max(1, 2 * self._tried_bytes):
                return None
            self._tried_bytes = limit
            try:
                whole = limit == job.limit_bytes
                found = inflated(raw, coding, limit, cut=whole and job.robots_of is not None)
            except Refused as refusal:
                found = refusal
            if found is None and limit < job.limit_bytes:
                return None
        if found is None:
            found = Refused("too_large.bytes", f"more than {job.limit_bytes} bytes unpacked")
        self._bodies.popleft()
        self._tried_bytes = 0
        self._memory.in_flight_bytes -= len(raw)
        return job, found

    def forget(self) -> None:
        """Drop all of them."""
        self._memory.in_flight_bytes -= sum(len(raw) for _, raw, _ in self._bodies)
        self._bodies.clear()
