"""What the fetch thread works on: jobs, the byte budget, and all that outlives one thread."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate.download.guard import Policy, Target
from curate.download.health import Healths
from curate.download.names import Names
from curate.download.outcomes import Refused
from curate.download.pace import Crowd, Hosts
from curate.download.robots import Robots

if TYPE_CHECKING:
    from curate.download.transfer import Transfer

MOST_BODIES = 64 + (os.cpu_count() or 1)
COSTS = ("fetch_cpu_s", "requests", "connections", "tls_handshakes", "tls_wall_s", "wire_bytes")


@dataclass(eq=False, slots=True)
class Job:
    """A submitted URL on its way. ``spent_s`` is what earlier hops took of this attempt's time."""

    key: Any
    seq: int
    first: Target
    limit_bytes: int
    target: Target = field(init=False)  # of this hop
    host: str = ""
    attempt: int = 0
    hops: int = 0
    spent_s: float = 0.0
    robots_of: str | None = None  # the origin whose robots.txt this is
    begun: bool = False
    addresses: list[str] = field(
        default_factory=list
    )  # of the host of ``target``; empty: it is one
    asked_s: float = 0.0  # when the addresses were asked for
    shortages: int = 0  # times it could not be tried for want of files of ours

    def __post_init__(self) -> None:
        self.target = self.first


class Memory:
    """Bytes of bodies in flight and of those handed out. The ``first`` transfer may be ``slack_bytes`` over budget.

    With the slack of one whole body it can always end once what was handed out has been released.
    """

    def __init__(self, budget_bytes: int, slack_bytes: int, most_bodies: int = MOST_BODIES) -> None:
        self.budget_bytes = budget_bytes
        self.slack_bytes = slack_bytes
        self.most_bodies = max(1, most_bodies)
        self.handed_out = 0  # bodies
        self.in_flight_bytes = 0
        self.handed_out_bytes = 0
        self.peak_bytes = 0
        self.first: Transfer | None = None
        self.paused: set[Transfer] = set()
        self.draining: deque[tuple[Transfer, int]] = deque()  # with its run; see `Transfer`

    @property
    def is_full_hands(self) -> bool:
        """Whether the consumer holds as many bodies as it may."""
        return self.handed_out >= self.most_bodies

    @property
    def room_bytes(self) -> int:
        """What is left of the budget; below 0 while the first transfer is over it."""
        return self.budget_bytes - self.in_flight_bytes - self.handed_out_bytes

    def room_bytes_for(self, transfer: Transfer) -> int:
        """What a transfer may still take."""
        return self.room_bytes + (self.slack_bytes if transfer is self.first else 0)

    def takes(self, transfer: Transfer, size_bytes: int) -> bool:
        """Whether a piece of that size may be kept; then it is counted."""
        if size_bytes > self.room_bytes_for(transfer):
            return False
        self.in_flight_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.in_flight_bytes + self.handed_out_bytes)
        return True

    def hand_out(self, size_bytes: int) -> None:
        """Count a body that the consumer holds now."""
        self.handed_out += 1
        self.handed_out_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.in_flight_bytes + self.handed_out_bytes)

    def give_back(self, size_bytes: int) -> None:
        """The consumer is done with a body."""
        self.handed_out -= 1
        self.handed_out_bytes -= size_bytes


class Desk:
    """What outlives one fetch thread, and what other threads put in: ``inbox``, ``released``, ``closing``."""

    def __init__(
        self,
        policy: Policy,
        most_requests: int,
        memory_bytes: int,
        deliver: Callable[[Any, bytes | Refused], None],
        wake: Callable[[], None],
        most_bodies: int = MOST_BODIES,
    ) -> None:
        self.policy = policy
        self.most_requests = max(1, most_requests)
        self.deliver = deliver
        self.memory = Memory(memory_bytes, policy.max_bytes, most_bodies)
        self.crowd = Crowd(most_requests)
        self.hosts = Hosts(policy.requests_per_host, policy.requests_per_s_per_host)
        self.healths = Healths()
        self.names = Names(wake, policy.timeout_s)
        self.robots = Robots(policy.user_agent_token)
        self.inbox: deque[tuple[Any, str | None]] = deque()
        self.released: deque[int] = deque()
        self.closing = False
        self.begun = 0
        self.totals = dict.fromkeys(COSTS, 0.0)
