"""Files left to open: the soft limit is raised, and what is open already counts."""

from __future__ import annotations

import resource

import pytest

from curate.download import files


def test_the_soft_limit_is_raised_and_what_is_open_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 4096)]

    def raise_to(_: int, wanted: tuple[int, int]) -> None:
        limits[0] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[0])
    monkeypatch.setattr(resource, "setrlimit", raise_to)
    monkeypatch.setattr(files, "_open_files", lambda: 1000)
    assert files.free_files() == 4096 - 1000 - 192
    assert limits == [(4096, 4096)]
    limits[0] = (300, 300)
    assert files.free_files() == 16  # never none at all


def test_a_limit_that_may_not_be_raised_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, wanted: tuple[int, int]) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(files, "_open_files", lambda: 24)
    assert files.free_files() == 1024 - 24 - 192


def test_open_files_are_counted() -> None:
    before = files._open_files()
    with open(__file__):
        assert files._open_files() in (before + 1, 64)
