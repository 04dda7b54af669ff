"""``clip-pipe curate --retry``: failed rows are asked again, those of some kinds and no others.

A retry is noted in pool.json before anything is asked. That makes it a generation of the stages concerned
(see generations): they get another fingerprint and go on from the run before (`Planned.follows`), so
what that run left stays whole, and a retry that died is gone on with by the same command, or without
``--retry``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from curate.contract import done, storage
from curate.download.outcomes import KINDS, matches
from curate.stage import RowStage
from pipelines import generations, intake, part, sharding
from pipelines.errors import RecipeError, did_you_mean
from pipelines.plan import CurationPlan, Planned

_ERROR = "error."
_LISTED = "it is http.CODE (http.503; x is any digit, as in http.5xx) or one of"
Failures = dict[str, dict[str, int]]  # stage -> reason -> rows


@dataclass(frozen=True)
class Begun:
    """What a retry is about. ``rows`` is 0 where there is nothing to ask again."""

    rows: int
    failures: Failures  # all of the pool, also of other kinds
    resumed: bool = False  # an earlier retry of the same kinds was not finished
    not_run: tuple[str, ...] = ()  # stages that have not come to all parts yet, with these options


def parse(text: str) -> tuple[str, ...]:
    """``http.5xx,timeout`` as patterns, each once. Raises RecipeError."""
    words = [word.strip() for word in text.split(",")]
    if words == [""]:
        hint = "name some, as in --retry http.5xx,timeout or --retry transient, or leave the option away"
        raise RecipeError("--retry", "no kind of failure is named", hint)
    if "" in words:
        what = f"item {words.index('') + 1} of {len(words)} is empty"
        raise RecipeError(f"--retry {text}", what, "kinds of failure with one comma between two")
    return tuple(dict.fromkeys(words))


def begin(
    plan: CurationPlan, kinds: Sequence[str], say: Callable[[str], None] = lambda text: None
) -> Begun:
    """Note a retry, or find one that is not finished. Raises RecipeError. Afterwards the plan is another one."""
    described = plan.pool.describe()
    if intake.check_pool(plan) is None or described is None:
        _check_kinds(plan, kinds, {})
        return Begun(0, {}, not_run=tuple(one.name for one in _row_stages(plan)))
    whole = intake.adopted(plan, described, say)
    if whole != described:
        _write(plan, described := whole)
    found = failures(plan)
    _check_kinds(plan, kinds, found)
    open_ = unfinished(plan)
    if open_ is not None:
        if set(open_["kinds"]) != set(kinds):
            raise RecipeError(
                f"--retry {','.join(kinds)}",
                f"the retry of {', '.join(open_['kinds'])} is not finished yet",
                "run `clip-pipe curate` without --retry first: it goes on with that one",
            )
        return Begun(open_["rows"], found, resumed=True)
    before = {
        stage: reasons for stage, reasons in found.items() if _rows(plan, stage, reasons, kinds)
    }
    rows = sum(_rows(plan, stage, reasons, kinds) for stage, reasons in before.items())
    if rows:
        entry = {"recipe": plan.recipe, "kinds": list(kinds), "rows": rows, "before": before}
        # One that was stopped, or whose shards are whole, is over: what it left open is the new one's.
        _change_newest(plan, lambda _: {"finished": True})
        described = plan.pool.describe() or described
        _write(plan, {**described, "retries": [*described.get("retries", []), entry]})
    return Begun(rows, found, not_run=_not_run(plan))


def unfinished(plan: CurationPlan) -> dict[str, Any] | None:
    """The plan's newest retry where it is not over yet: finished, or stopped for its failures."""
    newest = _newest(plan, plan.pool.describe())
    is_over = newest is None or newest.get("finished") or newest.get("stopped")
    return None if is_over or sharding.check_folder(plan) is not None else newest


def note_outcome(plan: CurationPlan) -> None:
    """Keep what the stages asked again fail with now, once they have asked everything."""
    _change_newest(plan, lambda entry: {"after": _of(failures(plan), entry["before"])})


def finish(plan: CurationPlan) -> None:
    """The next ``--retry`` is another one."""
    _change_newest(plan, lambda _: {"finished": True})


def finish_if_asked(plan: CurationPlan) -> None:
    """The same for a run that failed, if the retry itself was through."""
    if _is_asked(plan):
        note_outcome(plan)
        finish(plan)


def stop(plan: CurationPlan, stage: str) -> None:
    """For a run that ended since too many rows of ``stage`` failed.

    If that was a stage of the retry, the next ``--retry`` is another one, or it could not ask the rows that
    failed again; what this one had not come to is the next one's too.
    """
    finish_if_asked(plan)
    if stage in (_newest(plan, plan.pool.describe()) or {}).get("before", {}):
        _change_newest(plan, lambda _: {"stopped": True})


def _is_asked(plan: CurationPlan) -> bool:
    """Whether the stages of the plan's newest retry are through."""
    before = (_newest(plan, plan.pool.describe()) or {}).get("before", {})
    stages = [one for one in plan.stages if one.name in before]
    count = intake.part_count(plan)
    return bool(stages) and all(_is_done(plan, one, count) for one in stages)


def failures(plan: CurationPlan) -> Failures:
    """Rows by reason of every row stage that failed on some, from the manifests of parts.

    Of a part that this run has not come to, as the run has it that this one goes on from.
    """
    found: Failures = {}
    for planned in _row_stages(plan):
        counts: Counter[str] = Counter()
        for number, seen in part.survey(plan, planned, range(intake.part_count(plan))):
            before = (
                plan.pool.columns_path(planned.use, run, number) for run, _ in planned.follows
            )
            newest = seen.stats or next(
                (s for path in before if (s := done.look(path).stats)), None
            )
            if newest is not None:
                counts.update(newest["refused"])
        failed = {reason: n for reason, n in sorted(counts.items()) if reason.startswith(_ERROR)}
        if failed:
            found[planned.name] = failed
    return found


def told(found: Mapping[str, Mapping[str, int]]) -> str:
    """``download.fetch: http.404 12, dns 3``."""
    lines = []
    for stage, reasons in found.items():
        most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        use = stage.partition("#")[0]
        kinds = (f"{generations.kind_of(use, reason)} {rows:,}" for reason, rows in most)
        lines.append(f"{stage}: {', '.join(kinds)}")
    return "; ".join(lines)


def _rows(plan: CurationPlan, stage: str, reasons: Mapping[str, int], kinds: Sequence[str]) -> int:
    use = next(one.use for one in plan.stages if one.name == stage)
    return sum(n for reason, n in reasons.items() if generations.is_meant(use, reason, kinds))


def _row_stages(plan: CurationPlan) -> list[Planned]:
    return [one for one in plan.stages if isinstance(one.stage, RowStage)]


def _not_run(plan: CurationPlan) -> tuple[str, ...]:
    """Row stages that are not done: new ones, or files were added, or parts were given back after a failure."""
    count = intake.part_count(plan)
    return tuple(one.name for one in _row_stages(plan) if not _is_done(plan, one, count))


def _is_done(plan: CurationPlan, planned: Planned, count: int) -> bool:
    return all(seen.stats is not None for _, seen in part.survey(plan, planned, range(count)))


def _check_kinds(plan: CurationPlan, kinds: Sequence[str], found: Failures) -> None:
    """Raise RecipeError for a pattern that no failure could ever fit."""
    uses = [one.use for one in _row_stages(plan)]
    for wanted in kinds:
        seen = [(s.partition("#")[0], reason) for s, reasons in found.items() for reason in reasons]
        if any(generations.is_meant(use, reason, [wanted]) for use, reason in seen):
            continue
        kind = wanted
        if wanted.startswith(_ERROR):
            use = next((u for u in uses if wanted.startswith(f"{_ERROR}{u}.")), None)
            kind = generations.kind_of(use, wanted) if use else ""
        known = any(matches(each, kind) for each in KINDS) or _is_code(kind)
        if kind == generations.TRANSIENT or known:
            continue
        raise RecipeError(
            f"--retry {wanted}",
            "no such kind of failure" if kind else "no stage of this recipe has such reasons",
            did_you_mean(wanted, _words(wanted, uses, seen), _LISTED),
        )


def _is_code(kind: str) -> bool:
    """``http.503``, ``http.5xx``: any code, of which KINDS has the family alone."""
    family, _, code = kind.partition(".")
    return (
        family == "http"
        and len(code) == 3
        and code[0] in "12345"
        and set(code[1:]) <= set("0123456789x")
    )


def _words(wanted: str, uses: Sequence[str], seen: Sequence[tuple[str, str]]) -> set[str]:
    """What may be written: kinds, their families and those that were seen; or whole reasons."""
    kinds = {kind.rstrip(".") for kind in KINDS} | {kind.partition(".")[0] for kind in KINDS}
    if wanted.startswith(_ERROR):
        own = {reason for _, reason in seen}
        return own | {f"{_ERROR}{use}.{kind}" for use in uses for kind in kinds if not own}
    return kinds | {"http.5xx", generations.TRANSIENT} | {generations.kind_of(*one) for one in seen}


def _of(found: Failures, stages: Mapping[str, Any]) -> Failures:
    return {stage: found.get(stage, {}) for stage in stages}


def _newest(plan: CurationPlan, described: dict[str, Any] | None) -> dict[str, Any] | None:
    """The newest retry of the plan's recipe, if the plan has its stages; the very object in ``described``."""
    own = generations.entries_of(described, plan.recipe)
    names = {one.name for one in plan.stages}
    return own[-1] if own and set(own[-1]["before"]) <= names else None


def _change_newest(plan: CurationPlan, change: Any) -> None:
    """Add to the plan's newest retry in pool.json, where there is one that is not finished."""
    described = plan.pool.describe()
    newest = _newest(plan, described)
    if described is None or newest is None or newest.get("finished"):
        return
    before = dict(newest)
    newest.update(change(before))
    if newest != before:
        _write(plan, described)


def _write(plan: CurationPlan, described: dict[str, Any]) -> None:
    text = json.dumps(described, indent=1, default=str) + "\n"
    storage.write_text(plan.pool.description_path, text)
