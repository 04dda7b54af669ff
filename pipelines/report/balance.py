"""The threshold that a run was balanced with, from the counts that `filter.metadata_balance` left in the pool.

MetaCLIP, arXiv 2309.16671: entries with t rows or more are the head, which is thinned out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts, storage
from curate.contract.parts import Pool
from curate.filter import balancing
from pipelines.report import options
from pipelines.report.content import Balance, BalanceGroup
from pipelines.report.entries import EntryCounts

_SHOWN = 40


def state_of(pool: Pool, stage: Mapping[str, Any]) -> pa.Table | None:
    """entry, count, group and t of each entry that a row matched; None where it is gone."""
    folder = pool.columns_folder(options.use_of(stage), stage["fingerprint"])
    path = storage.join(folder, "state.parquet")
    if not storage.exists(path):
        return None
    return parts.read_table(path, ["entry", "count", "group", "t"])


def is_grouped(state: pa.Table) -> bool:
    """Whether entries were counted by the values of a column."""
    return state["group"].null_count < len(state)


def balance_of(
    stage: Mapping[str, Any],
    state: pa.Table,
    chosen: Mapping[str, Any],
    counts: EntryCounts | None,
) -> Balance | None:
    """The section of the report; None where no row matched. ``chosen``: the stage's options."""
    if not len(state):
        return None
    grouped = is_grouped(state)
    values = pc.fill_null(state["group"].cast(pa.string()), "(none)" if grouped else "")
    coded = values.combine_chunks().dictionary_encode()
    codes, names = np.asarray(coded.indices), coded.dictionary.to_pylist()
    count, t = np.asarray(state["count"]), np.asarray(state["t"])
    matches = np.bincount(codes, weights=count)
    order = np.lexsort((np.arange(len(names)), -matches))
    groups = []
    for group in order[:_SHOWN].tolist():
        own = codes == group
        sizes = balancing.head_and_tail(count[own], t[own])
        groups.append(BalanceGroup(group=names[group], t=int(t[own][0]), **sizes))
    expected = None if counts is None else counts.expected
    if expected is not None and counts is not None and chosen.get("keep_unmatched"):
        expected += counts.unmatched
    sigma = None if expected is None or counts is None else math.sqrt(counts.variance)
    return Balance(stage["use"], groups, len(names), stage["kept"], expected, sigma)
