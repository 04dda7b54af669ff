"""filter.metadata_balance: MetaCLIP's probability by hand, its yield, and no dependence on order or cut."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract import parts
from curate.contract.draw import draw, pair_uid
from curate.filter.metadata_balance import MetadataBalance
from pipelines import curation, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet


def part_of(entries: list[list[int] | None], first: int = 0) -> pa.Table:
    uids = [pair_uid(f"http://host/{first + n}", "x") for n in range(len(entries))]
    return pa.table(
        {"uid": pa.array(uids, pa.string()), "entries": pa.array(entries, pa.list_(pa.int32()))}
    )


def reasons(stage: MetadataBalance, parts: list[pa.Table]) -> list[str | None]:
    state = stage.merge([stage.summarize(part) for part in parts])
    decided = [stage.decide(part, state) for part in parts]
    assert all(table.schema == stage.writes() for table in decided)
    return [reason for table in decided for reason in table["reason"].to_pylist()]


def zipf_entries(rows: int, seed: int = 0) -> list[list[int] | None]:
    rng = random.Random(seed)
    return [
        sorted({min(int(rng.paretovariate(0.8)), 5000) for _ in range(rng.randint(0, 6))})
        for _ in range(rows)
    ]


def test_counts_are_rows_per_entry() -> None:
    stage = MetadataBalance(t=1)
    state = stage.merge(
        [stage.summarize(part_of([[1, 2], [2], [], None])), stage.summarize(part_of([[2, 9]]))]
    )
    assert dict(zip(state["entry"].to_pylist(), state["count"].to_pylist(), strict=True)) == {
        1: 1,
        2: 3,
        9: 1,
    }


def test_probability_by_hand() -> None:
    state = pa.table({"entry": pa.array([0, 1, 2], pa.int32()), "count": [10, 4, 2]})
    chances = MetadataBalance(t=2).probabilities([[0], [1], [2], [0, 1], [0, 2], []], state)
    assert chances == pytest.approx([0.2, 0.5, 1.0, 1 - 0.8 * 0.5, 1.0, None])


def test_a_row_stays_iff_its_draw_is_under_its_probability() -> None:
    part = part_of([[0]] * 50)
    found = reasons(MetadataBalance(t=10, seed=3), [part])
    expected = [
        None if draw(uid, "balance:3") < 10 / 50 else "balanced" for uid in part["uid"].to_pylist()
    ]
    assert found == expected
    assert None in found
    assert "balanced" in found


@pytest.mark.parametrize("t", [1, 5, 40])
def test_yield_is_what_the_probabilities_promise(t: int) -> None:
    entries = zipf_entries(20_000)
    part, stage = part_of(entries), MetadataBalance(t=t)
    state = stage.summarize(part)
    chances = [chance for chance in stage.probabilities(entries, state) if chance is not None]
    expected = sum(chances)
    sigma = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    kept = reasons(stage, [part]).count(None)
    assert abs(kept - expected) < 3 * sigma
    assert 0 < kept < len(chances)


def test_the_tail_is_flattened_and_rare_entries_are_whole() -> None:
    entries = [[0]] * 5000 + [[n] for n in range(1, 100) for _ in range(3)]
    found = reasons(MetadataBalance(t=100), [part_of(entries)])
    assert found[5000:] == [None] * 297
    assert 60 < found[:5000].count(None) < 140


def test_t_at_the_largest_count_keeps_every_matched_row() -> None:
    entries = [found for found in zipf_entries(2000) if found]
    largest = max(MetadataBalance(t=1).summarize(part_of(entries))["count"].to_pylist())
    assert set(reasons(MetadataBalance(t=largest), [part_of(entries)])) == {None}
    assert "balanced" in reasons(MetadataBalance(t=largest // 4), [part_of(entries)])


def test_rows_without_an_entry_are_unmatched_unless_kept() -> None:
    part = part_of([[], None, [1]])
    assert reasons(MetadataBalance(t=1), [part]) == ["unmatched", "unmatched", None]
    assert reasons(MetadataBalance(t=1, keep_unmatched=True), [part]) == [None, None, None]


def test_seed_and_salt_choose_other_rows() -> None:
    part = part_of([[0]] * 400)
    found = {
        str(reasons(stage, [part]))
        for stage in (
            MetadataBalance(t=200),
            MetadataBalance(t=200, seed=1),
            MetadataBalance(t=200, salt="b"),
        )
    }
    assert len(found) == 3


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6), rng=st.randoms(use_true_random=False))
def test_neither_cut_nor_order_matters(cuts: list[int], rng: random.Random) -> None:
    stage, whole = MetadataBalance(t=4), part_of(zipf_entries(300))
    edges = sorted({0, 300, *cuts})
    parts = [whole.slice(start, end - start) for start, end in itertools.pairwise(edges)]
    expected = reasons(stage, [whole])
    assert reasons(stage, parts) == expected
    partials = [stage.summarize(part) for part in parts]
    rng.shuffle(partials)
    state = partials[0]
    for partial in partials[1:]:
        state = stage.merge([state, partial])
    assert stage.decide(whole, state)["reason"].to_pylist() == expected


def test_an_empty_part_is_no_trouble() -> None:
    assert reasons(MetadataBalance(t=1), [part_of([]), part_of([[1]])]) == [None]


def test_a_pool_is_balanced_by_the_runner_as_by_hand(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """Match and balance over a real pool of several parts: the sidecar says what MetaCLIP's formula says."""
    words = tmp_path / "entries.txt"
    words.write_text("word0\nnumber\nword2 number\nnumber 2\n")
    stages = [
        {"use": "score.metadata_match", "entries": str(words)},
        {"use": "filter.metadata_balance", "t": 9},
    ]
    source = {"use": "tests.tiny.stages:Numbers", "count": 90, "rows_per_part": 20}
    plan = plan_curation(curate_recipe(source, stages))
    curation.run(plan, LocalRunner(), Quiet())
    found = [
        row
        for number in range(5)
        for row in parts.read_table(part.sidecar(plan, plan.stages[2], number)).to_pylist()
    ]
    # `number` is in all 90 rows (p = 0.1), `word0` and `word2 number` in 30 each (p = 0.3), `number 2`
    # in one (p = 1; `number 20` is another token).
    chances = [1 - 0.9 * 0.7, 1 - 0.9, 1 - 0.9 * 0.7]
    expected = [
        n == 2 or draw(row["uid"], "balance:0") < chances[n % 3] for n, row in enumerate(found)
    ]
    assert [row["keep"] for row in found] == expected
    assert 10 < sum(expected) < 60


def test_t_under_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"t = 0, no row would be kept\. hint: "):
        MetadataBalance(t=0).check()
