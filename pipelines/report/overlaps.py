"""Which items of evaluation sets the rows repeat, as `filter.eval_overlap` found them, the most frequent first.

Read part by part from its sidecars; only the items that were found are held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from curate.contract import parts, storage
from curate.contract.parts import Pool
from pipelines.report.content import Overlap

_USE = "filter.eval_overlap"
_SHOWN = 200


def found(pool: Pool, manifest: Mapping[str, Any]) -> Overlap | None:
    """The items repeated by rows of a run; None where it has no such stage."""
    stages = [s for s in manifest["stages"] if s["use"].partition("#")[0] == _USE]
    if not stages:
        return None
    counts: Counter[str] = Counter()
    for stage in stages:
        for part in range((pool.describe() or {"parts": 0})["parts"]):
            path = pool.columns_path(_USE, stage["fingerprint"], part)
            if storage.exists(path):
                items = parts.read_table(path, ["overlap"])["overlap"].drop_null()
                for entry in pc.value_counts(items).to_pylist():
                    counts[entry["values"]] += entry["counts"]
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return Overlap(rows=counts.total(), items=len(ordered), most=ordered[:_SHOWN])
