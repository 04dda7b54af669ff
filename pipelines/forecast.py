"""``clip-pipe forecast``: what a recipe would keep and cost, before anything is paid for.

The source and the stages that only read text are run in the recipe's own pool, where `clip-pipe curate`
finds them done. The balance is then known: the expected number of rows is the sum of their chances P,
with variance sum P(1 - P) since rows are drawn independently, and what this seed keeps is exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curate.contract import parts, storage
from curate.filter import balancing
from curate.filter.metadata_balance import MetadataBalance
from curate.score.entry_lists import by_language, read_entries
from curate.stage import StageError, pool_state
from pipelines import costs, front, global_step, intake, part, probe
from pipelines.allowance import Allowance
from pipelines.curation import Runner
from pipelines.errors import RecipeError, RunFailed
from pipelines.front import BALANCE, Front, front_of
from pipelines.funnel import Funnel, evaluate
from pipelines.plan import CurationPlan, Planned, plan_curation
from pipelines.progress import Progress
from pipelines.recipe import Recipe
from pipelines.whatif import with_t

_TOP_ENTRIES = 10


@dataclass(frozen=True)
class Group:
    """Rows of one value of the balance's ``by``: all that reach it, unmatched ones, and those to be kept."""

    rows: int
    unmatched: int
    expected: float
    has_no_list: bool = False  # entries are listed by language, and there is no list for this one


@dataclass(frozen=True)
class Balance:
    """What the balance does with one threshold. ``t`` by group; one group ``""`` where none are counted apart."""

    t: dict[str, int]
    rows: int  # that reach it
    unmatched: int
    expected: float  # rows kept, before any draw
    sigma: float  # its standard deviation over seeds
    head_and_tail: dict[str, int]
    top: tuple[
        tuple[int, str, int, float], ...
    ]  # (entry, group, rows that match, p), most frequent first
    asked: int | None = None  # of ``keep``
    around: tuple[
        tuple[int, float], ...
    ] = ()  # (t, rows expected) of the solved t and the one below
    groups: Mapping[str, Group] = field(default_factory=dict)  # {} where none are counted apart

    @property
    def tail_share(self) -> float:
        """Share of all matches that entries under t have."""
        tail = self.head_and_tail["tail_matches"]
        whole = tail + self.head_and_tail["head_matches"]
        return tail / whole if whole else 0.0


@dataclass(frozen=True)
class Column:
    """One threshold: the front's funnel, exact for this seed, and the balance."""

    name: str
    funnel: Funnel
    balance: Balance | None


@dataclass(frozen=True)
class Cost:
    """Expected time of one stage that is still to do, for at most ``rows`` rows."""

    stage: str
    rows: int | None  # None where no picture came, so that it is not known how many there are
    rate: costs.Rate | None


@dataclass(frozen=True)
class Forecast:
    """All that is told. ``download`` is for the first column."""

    recipe: str
    pool: str
    front: Front
    columns: tuple[Column, ...]
    download: probe.Bytes
    costs: tuple[Cost, ...]
    workers: int
    allowance: Allowance | None = None  # of a balance that makes up for what the download loses
    entry_texts: Mapping[tuple[int, str], str] = field(default_factory=dict)  # by (entry, group)


def forecast(
    loaded: Recipe,
    runner: Runner,
    progress: Progress,
    *,
    ts: Sequence[int] = (),
    sample_rows: int = 0,
    workers: int = 1,
) -> Forecast:
    """Run the front where it is not done, and work out the rest. Raises RecipeError, RunFailed."""
    whole = plan_curation(loaded)
    ahead = front_of(loaded, whole)
    plans = [(f"t = {t:,}", _front_with(loaded, t)) for t in ts]
    if ts and ahead.balance is None:
        raise RecipeError(
            "--t",
            "the balance needs columns of a stage that pays",
            "put score.metadata_match above it",
        )
    front.run(ahead.plan, runner, progress)
    if not storage.exists(storage.join(whole.pool_root, "recipe.toml")):
        intake.keep_recipe(loaded)  # so that `whatif POOL` can be asked before anything is paid
    balances: list[Balance | None] = [None] * (1 + len(ts))
    if ahead.balance is not None:
        stages = [plan.stages[ahead.balance].stage for _, plan in plans]
        try:
            balances = list(balances_of(ahead.plan, ahead.balance, stages))
        except StageError as fault:
            raise RunFailed(str(fault)) from fault
    columns = [Column("recipe", evaluate(ahead.plan), balances[0])]
    for (name, plan), balance in zip(plans, balances[1:], strict=True):
        columns.append(Column(name, evaluate(plan, ahead.plan), balance))
    paying = None if ahead.paying is None else whole.stages[ahead.paying]
    fetch = paying if paying is not None and paying.makes_images else None
    kept = columns[0].funnel.kept
    download = probe.estimate(ahead.plan, fetch, kept, sample_rows)
    allowed = next((one for one in whole.allowances), None)
    if allowed is not None and not allowed.success_fracs and not allowed.settled:
        kept = round(kept / download.success_frac) if download.success_frac else kept
        download = probe.of_rows(download, kept)
    return Forecast(
        recipe=loaded.name,
        pool=whole.pool_root,
        front=ahead,
        columns=tuple(columns),
        download=download,
        costs=tuple(_costs(whole, ahead, kept, download)),
        workers=workers,
        allowance=allowed,
        entry_texts=entry_texts(whole, [b for b in balances if b is not None]),
    )


def _front_with(loaded: Recipe, t: int) -> CurationPlan:
    changed = with_t(loaded, t)
    return front_of(changed, plan_curation(changed)).plan


def balances_of(plan: CurationPlan, index: int, others: Sequence[MetadataBalance]) -> list[Balance]:
    """The balance as the plan has it, then with each of the other stages' thresholds; the parts are read once."""
    planned = plan.stages[index]
    state = _state(plan, index)
    pairs = [(planned.stage, state)]
    pairs += [(stage, stage.close(stage.merge([state]))) for stage in others]
    count = int((plan.pool.describe() or {"parts": 0})["parts"])
    rows = unmatched = 0
    by_group = _Groups(planned.stage)
    expected: list[list[float]] = [[] for _ in pairs]
    variance: list[list[float]] = [[] for _ in pairs]
    for number in range(count):
        table, _ = part.living(plan, index, number)
        rows += len(table)
        for position, (stage, its) in enumerate(pairs):
            chances = stage.probabilities(table, its)
            matched = chances[~np.isnan(chances)]
            expected[position].append(math.fsum(matched))
            variance[position].append(math.fsum(matched * (1.0 - matched)))
            if position == 0:
                unmatched += len(chances) - len(matched)
                by_group.add(table, chances)
    free = unmatched if planned.stage.keep_unmatched else 0
    found = [
        _balance(its, rows, unmatched, math.fsum(mean) + free, math.fsum(spread))
        for (_, its), mean, spread in zip(pairs, expected, variance, strict=True)
    ]
    first = {"asked": planned.stage.wanted(), "around": _around(planned.stage, state)}
    found[0] = dataclasses.replace(found[0], **first, groups=by_group.all(_lists(plan)))
    return found


class _Groups:
    """Rows, unmatched ones and expected ones by the balance's ``by``, added up part by part."""

    def __init__(self, stage: MetadataBalance) -> None:
        self._by, self._keeps_unmatched = stage.by, stage.keep_unmatched
        self._sums: dict[str, np.ndarray] = {}

    def add(self, table: pa.Table, chances: np.ndarray) -> None:
        if not self._by:
            return
        coded = table[self._by].cast(pa.string()).combine_chunks().fill_null("").dictionary_encode()
        codes, count = np.asarray(coded.indices), len(coded.dictionary)
        missing = np.isnan(chances)
        free = float(self._keeps_unmatched)
        kept = np.bincount(codes, np.where(missing, free, chances), count)
        sums = np.stack([np.bincount(codes, None, count), np.bincount(codes, missing, count), kept])
        for name, column in zip(coded.dictionary.to_pylist(), sums.T, strict=True):
            self._sums[name] = self._sums.get(name, np.zeros(3)) + column

    def all(self, lists: Mapping[str, str] | None) -> dict[str, Group]:
        """``lists``: those of languages, where rows of another language can match nothing."""
        listless = self._by == "language" and lists is not None
        return {
            name: Group(
                int(rows), int(unmatched), float(kept), listless and name not in (lists or {})
            )
            for name, (rows, unmatched, kept) in sorted(self._sums.items())
        }


def _around(stage: MetadataBalance, state: pa.Table) -> tuple[tuple[int, float], ...]:
    """(t, rows expected to be kept) of the largest t that keeps too few and the smallest that keeps enough."""
    wanted = stage.wanted()
    if wanted is None:
        return ()
    tried = stage.tried(state)
    return tuple((t, tried[t]) for t in balancing.bracket(tried, wanted) if t)


def _matching(plan: CurationPlan) -> Planned | None:
    return next((p for p in plan.stages if p.use == "score.metadata_match"), None)


def _lists(plan: CurationPlan) -> dict[str, str] | None:
    """Language -> list, where a row of another language matches nothing; else None."""
    match = _matching(plan)
    if match is None or match.options["rule"] == "spaced" or match.options["fallback"]:
        return None
    return by_language(match.options["entries"])


def _balance(
    state: pa.Table, rows: int, unmatched: int, expected: float, variance: float
) -> Balance:
    counts, t = np.asarray(state["count"]), np.asarray(state["t"])
    groups = [group or "" for group in state["group"].to_pylist()]
    first = np.argsort(-counts, kind="stable")[:_TOP_ENTRIES]
    entries = np.asarray(state["entry"])
    top = tuple(
        (int(entries[n]), groups[n], int(counts[n]), min(1.0, float(t[n] / counts[n])))
        for n in first
    )
    by_group = dict(zip(groups, t.tolist()))
    return Balance(
        t=by_group,
        rows=rows,
        unmatched=unmatched,
        expected=expected,
        sigma=math.sqrt(variance),
        head_and_tail=balancing.head_and_tail(counts, t),
        top=top,
    )


def _state(plan: CurationPlan, index: int) -> pa.Table:
    """The balance's state as the run kept it; counted anew for a pool that an older clip-pipe made."""
    path = global_step.state_path(plan, plan.stages[index])
    if storage.exists(path):
        return parts.read_table(path)
    count = int((plan.pool.describe() or {"parts": 0})["parts"])
    return pool_state(
        plan.stages[index].stage,
        lambda: (part.living(plan, index, number)[0] for number in range(count)),
    )


def entry_texts(plan: CurationPlan, balances: Iterable[Balance]) -> dict[tuple[int, str], str]:
    """(entry, group) -> its text, of the entries that the balances name; those of unknown lists are left out."""
    match = _matching(plan)
    wanted = {(entry, group) for balance in balances for entry, group, *_ in balance.top}
    if match is None or not wanted:
        return {}
    path = match.options["entries"]
    if match.options["rule"] == "spaced":
        texts = read_entries(path)
        return {key: texts[key[0]] for key in wanted if key[0] < len(texts)}
    balance = next((p for p in plan.stages if p.use == BALANCE), None)
    if balance is None or balance.options["by"] != "language":
        return {}  # an id is another entry in each language's list
    paths, found = by_language(path), {}
    for group in {group for _, group in wanted}:
        listed = paths.get(group) or paths.get(match.options["fallback"])
        texts = read_entries(listed) if listed else []
        found.update({k: texts[k[0]] for k in wanted if k[1] == group and k[0] < len(texts)})
    return found


def _costs(whole: CurationPlan, ahead: Front, kept: int, download: probe.Bytes) -> list[Cost]:
    """The stages from the first paying one on, with the rows that can reach them at most."""
    found: list[Cost] = []
    rows: int | None = kept
    for index in range(
        len(whole.stages) if ahead.paying is None else ahead.paying, len(whole.stages)
    ):
        planned = whole.stages[index]
        if planned.name in ahead.moved:
            continue
        rate = costs.rate_of(whole, planned)
        if index == ahead.paying and download.seconds_per_row is not None:
            rate = costs.Rate(download.seconds_per_row, "probe")
        found.append(Cost(planned.name, rows, rate))
        if index == ahead.paying and rows is not None and download.success_frac is not None:
            rows = round(rows * download.success_frac) if download.success_frac else None
    return found


def record(found: Forecast) -> dict[str, Any]:
    """The same for machines."""
    from pipelines.side_by_side import funnel_record

    return {
        "recipe": found.recipe,
        "pool": found.pool,
        "upper_bound": list(found.front.moved),
        "columns": [
            {
                "name": column.name,
                **funnel_record(column.funnel),
                "balance": None
                if column.balance is None
                else {
                    **dataclasses.asdict(column.balance),
                    "tail_share": column.balance.tail_share,
                    "kept": column.funnel.at(_balance_name(found)).kept,
                },
            }
            for column in found.columns
        ],
        "download": dataclasses.asdict(found.download),
        "allowance": None if found.allowance is None else dataclasses.asdict(found.allowance),
        "costs": [
            {
                "stage": cost.stage,
                "rows": cost.rows,
                "seconds": cost.rate.seconds_per_row * cost.rows / found.workers
                if cost.rate and cost.rows is not None
                else None,
                "source": cost.rate.source if cost.rate and cost.rows is not None else "unknown",
            }
            for cost in found.costs
        ],
        "workers": found.workers,
    }


def _balance_name(found: Forecast) -> str:
    assert found.front.balance is not None
    return found.front.plan.stages[found.front.balance].name
