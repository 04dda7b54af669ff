"""Why a caption would be kept or not: matched entries, counts, probability, draw, and near misses.

What MetaCLIP does to one row (arXiv 2309.16671, section 3.3) with the figures of a pool beside it.
Other filters of the recipe are not asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.contract import parts, storage
from curate.contract.draw import draw, pair_uid
from curate.entries.near_misses import NearMiss, near_misses
from curate.filter import balancing
from curate.filter.metadata_balance import MetadataBalance
from curate.score.entry_lists import by_language, read_entries
from curate.score.metadata_match import MetadataMatch
from curate.stage import StageError
from pipelines import global_step, recipe
from pipelines.errors import RecipeError, split_hint
from pipelines.plan import plan_curation

_MATCH, _BALANCE = "score.metadata_match", "filter.metadata_balance"
_NEAR_SHOWN = 20
_GROUPS_SHOWN = 12


@dataclass(frozen=True)
class Question:
    """What is asked; empty means not given. One of ``recipe`` and ``entries`` is."""

    caption: str
    recipe: str = ""
    overrides: tuple[str, ...] = ()
    entries: str = ""
    pool: str = ""
    url: str = ""
    t: int | None = None
    language: str = ""
    group: str | None = None  # the row's value of the balance's `by`; "" where it has none


@dataclass(frozen=True)
class Matched:
    """One matched entry. ``count``, ``t`` and ``p`` are null where no pool or threshold tells them."""

    id: int
    entry: str
    count: int | None
    t: int | None
    p: float | None


@dataclass(frozen=True)
class Answer:
    """``keep`` is null where it can't be told; ``why`` says what is missing or what decided."""

    caption: str
    language: str
    uid: str | None
    entries: int
    matched: list[Matched]
    probability: float | None
    draw: float | None
    keep: bool | None
    reason: str | None
    why: str
    counts_from: str | None
    near_misses: list[NearMiss]


@dataclass(frozen=True)
class _Pool:
    """A balance as it was made: its options and entry counts (null state where not counted yet)."""

    balance: MetadataBalance | None = None
    state: pa.Table | None = None
    path: str | None = None


def explain(question: Question) -> Answer:
    """The answer. Raises RecipeError for a question that can't be answered."""
    if bool(question.recipe) == bool(question.entries):
        raise RecipeError("explain", "one of --recipe and --entries is needed", "give one of them")
    match, pool = _from_recipe(question) if question.recipe else _from_files(question)
    if "language" in match.reads() and not question.language:
        raise RecipeError(
            "explain", "this list is one of several languages", "say which: --language en"
        )
    group = _group(question, pool)
    try:
        ids, texts = _matches(match, question)
    except (ValueError, StageError) as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("explain", what, hint) from fault
    matched = _with_counts(ids, texts, question.t, pool, group)
    chance = _chance(matched)
    uid = pair_uid(question.url, question.caption) if question.url else None
    balance = pool.balance or (MetadataBalance(t=question.t) if question.t else None)
    lot = draw(uid, f"{balance.salt}:{balance.seed}") if uid and balance else None
    keep, reason, why = _verdict(matched, chance, lot, balance, question)
    if not texts:
        why = f"there is no list for {question.language}, and `fallback` is empty, so {why}"
    near = near_misses(question.caption, texts, ids)
    return Answer(
        question.caption,
        question.language,
        uid,
        len(texts),
        matched,
        chance,
        lot,
        keep,
        reason,
        why,
        pool.path,
        near,
    )


def to_json(answer: Answer) -> str:
    """The answer as one JSON object."""
    return json.dumps(asdict(answer), ensure_ascii=False)


def to_text(answer: Answer) -> str:
    """The answer in lines for people."""
    lines = [f"caption      {answer.caption}"]
    if answer.language:
        lines.append(f"language     {answer.language}")
    if answer.uid:
        lines.append(f"uid          {answer.uid}")
    lines.append(
        f"counts from  {answer.counts_from or 'nowhere: give a recipe or --pool that was run'}"
    )
    told = f"{len(answer.matched):,} of {answer.entries:,} entries"
    lines.append(f"matched      {told if answer.entries else 'nothing: no list'}")
    if answer.matched:
        lines.append(f"  {'id':>8}  {'count':>12}  {'t':>9}  {'p':>6}  entry")
    for one in answer.matched:
        figures = f"{_shown(one.count):>12}  {_shown(one.t):>9}  {_shown(one.p):>6}"
        lines.append(f"  {one.id:>8}  {figures}  {one.entry}")
    if answer.probability is not None:
        lines.append(f"probability  {answer.probability:.6f}")
    if answer.draw is not None:
        lines.append(f"draw         {answer.draw:.6f}")
    word = {True: "kept", False: f"refused as `{answer.reason}`", None: "open"}[answer.keep]
    lines.append(f"decision     {word}: {answer.why}")
    if answer.near_misses:
        lines.append(f"near misses  {len(answer.near_misses):,}")
    for miss in answer.near_misses[:_NEAR_SHOWN]:
        lines.append(f"  {miss.id:>8}  {miss.entry}: {miss.why}")
    return "\n".join(lines)


def _shown(value: float | int | None) -> str:
    if value is None:
        return "?"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _from_recipe(question: Question) -> tuple[MetadataMatch, _Pool]:
    """The matching stage and the balance of a recipe's plan."""
    planned = plan_curation(recipe.load(question.recipe, question.overrides))
    by_use = {stage.use: stage for stage in reversed(planned.stages)}
    if _MATCH not in by_use:
        raise RecipeError(question.recipe, f"no stage uses {_MATCH}", "name a list with --entries")
    balance = by_use.get(_BALANCE)
    if question.pool:
        return by_use[_MATCH].stage, _counted_in(question.pool)
    if balance is None:
        return by_use[_MATCH].stage, _Pool()
    path = global_step.state_path(planned, balance)
    if not storage.exists(path):
        return by_use[_MATCH].stage, _Pool(balance.stage)
    return by_use[_MATCH].stage, _Pool(balance.stage, parts.read_table(path), path)


def _from_files(question: Question) -> tuple[MetadataMatch, _Pool]:
    """The matching stage of a list named by itself, and the one balance of a pool where one is named."""
    path = storage.absolute(question.entries)
    is_folder = "*" in path or os.path.isdir(path)
    match = MetadataMatch(entries=path, rule="worldwide" if is_folder else "spaced")
    try:
        match.check()
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("explain --entries", what, hint) from fault
    return match, _counted_in(question.pool) if question.pool else _Pool()


def _counted_in(pool: str) -> _Pool:
    """The balance that a pool holds the counts of. Raises RecipeError for none and for several."""
    root = storage.absolute(pool)
    found = storage.glob(storage.join(root, "columns", f"{_BALANCE}-*", "state.parquet"))
    if len(found) != 1:
        told = f"{len(found)} balances are counted" if found else "no balance is counted there yet"
        hint = "name the recipe with --recipe" if found else "run `clip-pipe curate` first"
        raise RecipeError(f"explain --pool {pool}", told, hint)
    beside = storage.join(found[0].rpartition("/")[0], "manifest.json")
    balance = None
    if storage.exists(beside):
        balance = MetadataBalance(**storage.read_json(beside, "explain --pool")["options"])
    return _Pool(balance, parts.read_table(found[0]), found[0])


def _matches(match: MetadataMatch, question: Question) -> tuple[list[int], Sequence[str]]:
    """Ids of the entries in the caption, and the texts of the list they are of."""
    columns = {"caption": [question.caption], "language": [question.language or None]}
    row = pa.table({name: pa.array(columns[name], pa.string()) for name in match.reads()})
    ids = match.process(row, match.open())["entries"].to_pylist()[0]
    if match.rule == "spaced":
        return ids, read_entries(match.entries)
    lists = by_language(match.entries)
    path = lists.get(question.language) or lists.get(match.fallback)
    return ids, read_entries(path) if path else []


def _group(question: Question, pool: _Pool) -> str | None:
    """The value of ``by`` whose counts are meant; None where none are counted apart. Raises RecipeError."""
    by = pool.balance.by if pool.balance is not None else ""
    if not by or pool.state is None or not len(pool.state):
        return None
    option = "--language" if by == "language" else "--group"
    group = question.group
    if group is None and by == "language":
        group = question.language or None
    there = [value or "" for value in pc.unique(pool.state["group"]).to_pylist()]
    if group in there:
        return group
    named = ", ".join(value or '"" (rows without one)' for value in there[:_GROUPS_SHOWN])
    more = f" and {len(there) - _GROUPS_SHOWN:,} more" if len(there) > _GROUPS_SHOWN else ""
    raise RecipeError(
        "explain",
        f"rows are balanced apart by {by!r}"
        + (f", and no row of the pool that matches has {group!r}" if group is not None else ""),
        f"say which: {option} VALUE, one of {named}{more}",
    )


def _with_counts(
    ids: Sequence[int],
    texts: Sequence[str],
    asked_t: int | None,
    pool: _Pool,
    group: str | None,
) -> list[Matched]:
    """Each matched entry with what the pool says. No row of the pool holds it: its count is 0, p is 1."""
    counts, usual = _counts(asked_t, pool, group)
    matched: list[Matched] = []
    for number in ids:
        count, t = counts.get(number, (None if pool.state is None else 0, usual))
        t = asked_t or t
        p = None if count is None or t is None else min(1.0, t / max(count, 1))
        matched.append(Matched(number, texts[number], count, t, 1.0 if count == 0 else p))
    return matched


def _counts(
    asked_t: int | None, pool: _Pool, group: str | None
) -> tuple[dict[int, tuple[int, int | None]], int | None]:
    """(entry -> its count and t in the caption's group, the t of entries that nothing matched yet)."""
    usual = asked_t or (pool.balance.t if pool.balance is not None else None)
    state = pool.state
    if state is None:
        return {}, usual
    if group is not None:
        state = state.filter(pc.equal(pc.fill_null(state["group"], ""), group))
    counted = zip(state["count"].to_pylist(), state["t"].to_pylist(), strict=True)
    found = dict(zip(state["entry"].to_pylist(), counted, strict=True))
    return found, next((t for _, t in found.values()), usual)


def _chance(matched: Sequence[Matched]) -> float | None:
    """P of the row; None where nothing matches or a count is not known."""
    if not matched or any(one.p is None for one in matched):
        return None
    ids = np.array([one.id for one in matched], np.int32)
    counts = np.array([max(one.count or 0, 1) for one in matched], np.int64)
    thresholds = np.array([one.t or 1 for one in matched], np.float64)
    lists = pa.array([ids.tolist()], pa.list_(pa.int32()))
    return float(balancing.chances(lists, ids, counts, thresholds)[0])


def _verdict(
    matched: Sequence[Matched],
    chance: float | None,
    lot: float | None,
    balance: MetadataBalance | None,
    question: Question,
) -> tuple[bool | None, str | None, str]:
    """(keep, reason, why)."""
    if not matched:
        if balance is not None and balance.keep_unmatched:
            return True, None, "it matches no entry, and keep_unmatched is on"
        return False, "unmatched", "it matches no entry"
    if chance is None:
        counted = all(one.count is not None for one in matched)
        missing = (
            "no thresholds (--t)" if counted else "no entry counts (--pool, or run the recipe)"
        )
        return None, None, f"it matches; there are {missing}"
    if any(one.p == 1.0 for one in matched):
        return True, None, "an entry of it has no more than t rows, so it is kept for certain"
    if lot is None:
        return None, None, f"kept with a probability of {chance:.4f}; with --url the draw is known"
    if chance > lot:
        return True, None, "the probability is over the draw"
    return False, "balanced", "the probability is not over the draw"
