"""The byte budget: who may take how much, and what was the most."""

from __future__ import annotations

from curate.download.desk import COSTS, Desk, Job, Memory
from curate.download.guard import Policy, clean_url
from curate.download.transfer import Transfer


def test_all_but_the_first_stay_in_the_budget() -> None:
    memory = Memory(100, slack_bytes=50)
    first, other = Transfer(Policy(), memory), Transfer(Policy(), memory)
    memory.first = first
    assert memory.takes(other, 60)
    memory.hand_out(30)
    assert not memory.takes(other, 11)
    assert memory.takes(other, 10)
    assert memory.takes(first, 50)
    assert not memory.takes(first, 1)
    assert memory.handed_out == 1
    memory.give_back(30)
    assert memory.handed_out == 0
    assert memory.takes(first, 30)
    assert memory.peak_bytes == 150
    first.close()
    other.close()


def test_a_job_begins_at_its_first_target() -> None:
    job = Job("key", 1, clean_url("http://example.com/a"), 10)
    assert job.target is job.first
    assert (job.begun, job.attempt, job.addresses) == (False, 0, [])


def test_a_desk_starts_empty() -> None:
    desk = Desk(Policy(requests_per_host=3), 0, 100, lambda key, result: None, lambda: None)
    assert (desk.most_requests, len(desk.hosts), desk.memory.slack_bytes) == (1, 0, 32 << 20)
    assert desk.totals == dict.fromkeys(COSTS, 0.0)
