"""Sums over parts are those of all parts' stats, and no part is kept but those in which nothing went well."""

from __future__ import annotations

from pipelines.step_tally import Tally


def entry(part: int, kept: int, **refused: int) -> dict[str, object]:
    named = {name.replace("_", "."): rows for name, rows in refused.items()}
    rows = kept + sum(named.values())
    return {"part": part, "rows": rows, "rows_in": rows, "kept": kept, "refused": named, "seconds": 0.5, "costs": {"cpu_s": 2.0}}  # fmt: skip


def test_sums() -> None:
    seen = Tally()
    for one in (entry(0, 5, too_short=2), entry(1, 0, error_a=3), entry(2, 0, error_a=1, short=1)):
        seen.add(one)
    assert (seen.parts, seen.rows_in, seen.seconds, seen.costs) == (3, 12, 1.5, {"cpu_s": 6.0})
    assert seen.refused == {"too.short": 2, "error.a": 4, "short": 1}
    assert (seen.errors, seen.failed) == ({"error.a": 4}, 4)
    assert [one["part"] for one in seen.dead] == [1]


def test_an_empty_part_is_not_dead() -> None:
    seen = Tally()
    seen.add(entry(0, 0))
    assert seen.dead == []
