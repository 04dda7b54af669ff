"""A forecast as a person reads it: the funnel, the balance, the most frequent entries, bytes and time."""

from __future__ import annotations

from pipelines import costs
from pipelines.forecast import Balance, Forecast
from pipelines.probe import TAR_BYTES, Bytes
from pipelines.side_by_side import funnel_lines, rows_as_text

_HEAD_AND_TAIL = (
    ("entries with t rows or more (head)", "head_entries"),
    ("  their matches", "head_matches"),
    ("entries under t (tail)", "tail_entries"),
    ("  their matches", "tail_matches"),
)


def lines(found: Forecast) -> list[str]:
    """All of it, for stdout."""
    plan = found.front.plan
    names = ", ".join(planned.name for planned in plan.stages)
    told = [
        f"forecast of {found.recipe}",
        f"done in {found.pool}: {plan.source.use}, {names}",
    ]
    if found.front.moved:
        told.append(
            f"upper bound: in the recipe {', '.join(found.front.moved)} stand behind stages that are not run here and may refuse rows"
        )
    columns = [(column.name, column.funnel) for column in found.columns]
    told += ["", *funnel_lines(columns, differences=False)]
    balances = [column.balance for column in found.columns if column.balance is not None]
    if balances:
        told += ["", *_balance_lines(found, balances)]
        told += ["", *_top_lines(found, balances)]
    told += ["", *_download_lines(found.download)]
    return [*told, *_cost_lines(found)]


def _balance_lines(found: Forecast, balances: list[Balance]) -> list[str]:
    assert found.front.balance is not None
    name = found.front.plan.stages[found.front.balance].name
    head = [name, *(column.name for column in found.columns)]
    groups = list(balances[0].t)
    table = []
    if len(groups) <= 8:
        for group in groups:
            cells = [f"{balance.t[group]:,}" for balance in balances]
            table.append([f"t of {group}" if group else "t", *cells])
    table += [
        ["rows that reach it", *(f"{one.rows:,}" for one in balances)],
        ["rows that match no entry", *(f"{one.unmatched:,}" for one in balances)],
        ["expected to be kept", *(f"{one.expected:,.1f}" for one in balances)],
        ["  standard deviation", *(f"{one.sigma:,.1f}" for one in balances)],
        ["this seed keeps", *(f"{c.funnel.at(name).kept:,}" for c in found.columns)],
    ]
    for label, key in _HEAD_AND_TAIL:
        table.append([label, *(f"{one.head_and_tail[key]:,}" for one in balances)])
    table.append(["  share of all matches", *(f"{one.tail_share:.2%}" for one in balances)])
    return rows_as_text(head, table)


def _top_lines(found: Forecast, balances: list[Balance]) -> list[str]:
    """The most frequent entries: matches, and p with each threshold."""
    if not balances[0].top:
        return []
    head = ["most frequent entries", "matches", *(f"p, {c.name}" for c in found.columns)]
    table = []
    for place, (entry, group, count, _) in enumerate(balances[0].top):
        text = found.entry_texts[entry] if entry < len(found.entry_texts) else f"entry {entry}"
        chances = [f"{balance.top[place][3]:.4f}" for balance in balances]
        table.append([f"  {text[:40]}{f' ({group})' if group else ''}", f"{count:,}", *chances])
    return rows_as_text(head, table)


def _download_lines(download: Bytes) -> list[str]:
    if download.note == "nothing to download":
        return [download.note]
    told = [f"download: {download.rows:,} URLs"]
    if download.source == "probe":
        told[0] += f"; of {download.sample_rows:,} tried {download.success_frac:.1%} came"
    elif download.success_frac is not None:
        told[0] += f"; {download.success_frac:.1%} came in an earlier run"
    if download.fetched is not None:
        told.append(f"  over the network {_within(download.fetched, download.fetched_error)}")
    if download.stored is not None:
        share = 1.0 if download.success_frac is None else download.success_frac
        samples = download.rows * share
        told.append(f"  pictures as stored {_within(download.stored, download.stored_error)}")
        shards = costs.size(download.stored + samples * TAR_BYTES)
        told.append(f"  shards about {shards}, if no later stage refuses a row")
    if download.source == "unknown":
        told.append("  bytes unknown: give --probe N to fetch N of them")
    elif download.note:
        told.append(f"  from {download.note}")
    return told


def _within(value: float, error: float) -> str:
    return costs.size(value) + (f" ± {costs.size(error)}" if error else "")


def _cost_lines(found: Forecast) -> list[str]:
    if not found.costs:
        return []
    table = []
    for cost in found.costs:
        told = cost.rate.told(cost.rows, found.workers) if cost.rate else "unknown"
        if cost.rate and cost.stage.startswith("download."):
            told += f"; {1 / cost.rate.seconds_per_row:.0f} URLs a second and worker, bound by the network"
        table.append([f"  {cost.stage}", f"{cost.rows:,}", told])
    rows = rows_as_text(["time", "rows at most", ""], [[a, b, ""] for a, b, _ in table])
    return ["", rows[0], *(f"{row}  {told}" for row, (_, _, told) in zip(rows[1:], table))]
