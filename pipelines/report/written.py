"""Writes the page of a finished run into its own folder."""

from __future__ import annotations

from collections.abc import Sequence

from curate.contract import storage
from pipelines.report import collect
from pipelines.report.page import write_report

FILE_NAME = "report.html"


def curation(shards_root: str, entry_texts: Sequence[str] | None = None) -> str:
    """SHARDS/report.html; returns its path."""
    path = storage.join(shards_root, FILE_NAME)
    write_report(path, collect.curation_report(shards_root, entry_texts))
    return path


def training(train_out: str, name: str) -> str:
    """TRAIN/report.html; returns its path."""
    path = storage.join(train_out, FILE_NAME)
    write_report(path, collect.training_report(train_out, name))
    return path
