"""A forecast as a person reads it: the funnel, the balance, the most frequent entries, bytes and time."""

from __future__ import annotations

from pipelines import costs
from pipelines.forecast import Balance, Forecast
from pipelines.probe import TAR_BYTES, Bytes
from pipelines.side_by_side import funnel_lines, rows_as_text

_GROUPS_SHOWN = 12
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
        told += _group_lines(balances[0])
        told += ["", *_top_lines(found, balances)]
    told += ["", *_download_lines(found.download), *_allowance_lines(found)]
    if not found.costs and found.download.note == "nothing to download":
        told[-1] += ", nothing left to pay"
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
    return [*rows_as_text(head, table), *_solved_lines(balances[0])]


def _solved_lines(balance: Balance) -> list[str]:
    """What the thresholds around the solved one give, where t is solved for a number of rows."""
    if balance.asked is None:
        return []
    enough = next(((t, kept) for t, kept in balance.around if kept >= balance.asked), None)
    fewer = next(((t, kept) for t, kept in balance.around if kept < balance.asked), None)
    told = f"keep = {balance.asked:,}: "
    told += (
        f"t = {enough[0]:,} is expected to give {enough[1]:,.0f}"
        if enough
        else "all that match are fewer"
    )
    if enough and fewer:
        told += (
            f"; t = {fewer[0]:,} would give {fewer[1]:,.0f}, fewer than asked (t is a whole number)"
        )
    return [told]


def _group_lines(balance: Balance) -> list[str]:
    """Rows by group, the largest first, and the groups that no list is for."""
    if not balance.groups:
        return []
    names = sorted(balance.groups, key=lambda name: (-balance.groups[name].rows, name))
    table = []
    for name in names[:_GROUPS_SHOWN]:
        one = balance.groups[name]
        cells = [f"{one.rows:,}", f"{one.unmatched:,}", f"{one.expected:,.1f}"]
        table.append([f"  {name or '(none)'}", *cells])
    if len(names) > _GROUPS_SHOWN:
        table.append([f"  and {len(names) - _GROUPS_SHOWN:,} more", "", "", ""])
    head = ["by group", "rows", "match no entry", "expected to be kept"]
    missing = [
        f"{name or '(none)'}: {balance.groups[name].rows:,} rows, no list, fallback is empty"
        for name in names
        if balance.groups[name].has_no_list
    ]
    return ["", *rows_as_text(head, table), *missing]


def _top_lines(found: Forecast, balances: list[Balance]) -> list[str]:
    """The most frequent entries: matches, and p with each threshold."""
    if not balances[0].top:
        return []
    head = ["most frequent entries", "matches", *(f"p, {c.name}" for c in found.columns)]
    table = []
    for place, (entry, group, count, _) in enumerate(balances[0].top):
        text = found.entry_texts.get((entry, group), f"entry {entry}")
        chances = [f"{balance.top[place][3]:.4f}" for balance in balances]
        table.append([f"  {text[:40]}{f' ({group})' if group else ''}", f"{count:,}", *chances])
    return rows_as_text(head, table)


def _download_lines(download: Bytes) -> list[str]:
    if download.note == "nothing to download":
        return [download.note]
    told = [f"download: {download.rows:,} URLs"]
    if download.source == "probe":
        told[0] += (
            f"; of {download.sample_rows:,} tried {download.success_frac:.1%} came (not kept: a run fetches them again)"
        )
        told += [f"  {count:,} failed: {reason}" for reason, count in download.failures.items()]
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
    elif download.source == "probe" and download.stored is None:
        told.append("  bytes and time unknown: no picture came")
        told += [f"  hint: {download.hint}"] if download.hint else []
    elif download.note:
        told.append(f"  from {download.note}")
    return told


def _allowance_lines(found: Forecast) -> list[str]:
    """What a balance asks for beyond its number, since some of it is lost in the download."""
    one = found.allowance
    if one is None:
        return []
    if one.success_fracs:
        told = f"asks for {1 / one.success_frac:.3f} times {one.rows_wanted:,}, by what an earlier run lost"
        return [f"  {one.name} {told}"]
    if one.settled:
        return [f"  {one.name} asks for no more: nothing was lost in an earlier run"]
    frac = found.download.success_frac
    if not frac:
        return [
            f"  {one.name} then asks for as many more as are lost: give --probe N to know how many"
        ]
    return [
        f"  about {found.download.rows:,} rows have to be fetched for {round(found.download.rows * frac):,} to come ({one.name})"
    ]


def _within(value: float, error: float) -> str:
    return costs.size(value) + (f" ± {costs.size(error)}" if error else "")


def _cost_lines(found: Forecast) -> list[str]:
    if not found.costs:
        return []
    table = []
    for cost in found.costs:
        if cost.rows is None:
            table.append([f"  {cost.stage}", "unknown", "unknown: no picture came"])
            continue
        told = cost.rate.told(cost.rows, found.workers) if cost.rate else "unknown"
        if cost.rate and cost.stage.startswith("download."):
            told += f"; {1 / cost.rate.seconds_per_row:.0f} URLs a second and worker, bound by the network"
        table.append([f"  {cost.stage}", f"{cost.rows:,}", told])
    rows = rows_as_text(["time", "rows at most", ""], [[a, b, ""] for a, b, _ in table])
    return ["", rows[0], *(f"{row}  {told}" for row, (_, _, told) in zip(rows[1:], table))]
