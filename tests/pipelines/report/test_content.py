"""A report is plain data, and an empty one is legal."""

from __future__ import annotations

import dataclasses

import pytest

from pipelines.report.content import Report


def test_everything_but_the_title_may_be_missing_and_nothing_changes_after() -> None:
    report = Report(title="t")
    assert not any(
        getattr(report, field.name) for field in dataclasses.fields(report) if field.name != "title"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = "other"  # type: ignore[misc]
    assert Report(title="a").curves is not Report(title="b").curves
