"""Standard columns: img2dataset's names and types, the ledger's exact fields."""

from __future__ import annotations

import pyarrow as pa

from curate.contract import columns


def test_ledger_is_the_contract_s() -> None:
    assert columns.LEDGER_SCHEMA.names == ["uid", "url", "caption", "keep", "reason", "stage"]


def test_img2dataset_types() -> None:
    for name in ("width", "height", "original_width", "original_height"):
        assert columns.field(name) == pa.field(name, pa.int32())
    for name in ("status", "error_message", "sha256"):
        assert columns.field(name) == pa.field(name, pa.string())


def test_every_column_has_a_meaning() -> None:
    assert all(column.meaning and name == column.name for name, column in columns.COLUMNS.items())
