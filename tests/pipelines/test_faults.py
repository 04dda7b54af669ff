"""What verify found: counted beyond what is kept, and checked in threads or processes alike."""

from __future__ import annotations

import pytest

from pipelines import faults
from pipelines.faults import Fault, Faults


def test_faults_are_counted_beyond_those_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_MOST", 3)
    found = Faults()
    for number in range(5):
        found.add("file", f"part {number}", "is cut", "fetch it")
    told = found.record()
    assert (told["fine"], told["fault_count"], len(told["faults"])) == (False, 5, 3)
    assert told["faults"][0] == {
        "file": "file",
        "at": "part 0",
        "what": "is cut",
        "hint": "fetch it",
    }


def test_a_fault_in_words() -> None:
    assert str(Fault("f", "part 1", "is cut", "h")) == "f: part 1: is cut"
    assert str(Fault("f", "", "is cut", "h")) == "f: is cut"


def test_nothing_found_is_fine() -> None:
    found = Faults()
    found.saw("rows", 0)
    found.saw("parts")
    assert found.record() == {
        "fine": True,
        "checked": {"parts": 1},
        "faults": [],
        "fault_count": 0,
        "notes": [],
    }


def test_checks_come_back_in_order() -> None:
    with faults.spread("here", 0) as pool:
        assert list(faults.mapped(pool, divmod, [(n, 7) for n in range(100)])) == [
            divmod(n, 7) for n in range(100)
        ]


@pytest.mark.slow
def test_very_much_on_disk_is_checked_by_processes() -> None:
    with faults.spread("here", faults._PROCESSES_FROM_BYTES) as pool:
        assert list(faults.mapped(pool, divmod, [(9, 7)])) == [(1, 2)]


def test_a_few_names_of_many() -> None:
    assert faults.some(["a", "b"]) == "a, b"
    assert faults.some(list("abcde")) == "a, b, c and 2 more"
