"""filter.metadata_balance decides alike in any parts and any order, and as the runner has it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract import parts
from curate.contract.draw import draw
from curate.filter.metadata_balance import MetadataBalance
from curate.stage import pool_state
from pipelines import curation, global_step, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.curate.filter.test_metadata_balance import (
    STAGES,
    cut,
    kept_at,
    part_of,
    reasons,
    zipf_entries,
)
from tests.pipelines.test_curation import Quiet


@pytest.mark.parametrize("stage", STAGES)
def test_1_7_and_100_parts_decide_alike(stage: MetadataBalance) -> None:
    languages = random.Random(0).choices(["en", "de", "ja", None], [9, 4, 1, 1], k=3000)
    whole = part_of(zipf_entries(3000), 0, languages)
    expected = reasons(stage, [whole])
    assert {None, "balanced"} <= set(expected)
    for pieces in (7, 100):
        assert reasons(stage, cut(whole, pieces)) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_passes_take_partials_in_any_order(stage: MetadataBalance) -> None:
    languages = random.Random(0).choices(["en", "de", "ja", None], [9, 4, 1, 1], k=600)
    parts = cut(part_of(zipf_entries(600), 0, languages), 9)
    rng = random.Random(5)

    def shuffled(tables: list[pa.Table]) -> list[pa.Table]:
        return rng.sample(tables, len(tables))

    state = stage.close(stage.merge(shuffled([stage.summarize(part) for part in parts])))
    for _ in range(1, stage.passes()):
        state = stage.adjust(state, shuffled([stage.look_again(part, state) for part in parts]))
    assert state == pool_state(stage, lambda: parts)


def test_a_kept_state_is_added_to() -> None:
    """New files of a source are counted and merged with what was counted before."""
    stage = MetadataBalance(keep=5)
    old, new = part_of([[0], [0, 1]] * 9), part_of([[1, 2]] * 4, 100)
    state = pool_state(stage, lambda: [old])
    assert stage.merge([state, stage.summarize(new)]) == stage.merge(
        [stage.summarize(new), stage.summarize(old)]
    )


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
    assert stage.decide(whole, stage.close(state))["reason"].to_pylist() == expected


@pytest.mark.parametrize(
    "stage", [MetadataBalance(t=1), MetadataBalance(keep=1), MetadataBalance(tail_share=0.5)]
)
def test_empty_parts_and_pools_are_no_trouble(stage: MetadataBalance) -> None:
    assert reasons(stage, [part_of([]), part_of([[1]])]) == [None]
    assert reasons(stage, [part_of([])]) == []
    assert reasons(stage, [part_of([None, []])]) == ["unmatched", "unmatched"]
    assert reasons(replace(stage, by="language"), [part_of([[]], 0, ["en"])]) == ["unmatched"]


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


def test_a_pool_is_balanced_for_a_number_of_rows(
    curate_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    """The runner makes every pass, and the state stays beside the decisions."""
    words = tmp_path / "entries.txt"
    words.write_text("word0\nnumber\nword2 number\n")
    stages = [
        {"use": "score.metadata_match", "entries": str(words)},
        {"use": "filter.metadata_balance", "keep": 30},
    ]
    source = {"use": "tests.tiny.stages:Numbers", "count": 90, "rows_per_part": 20}
    plan = plan_curation(curate_recipe(source, stages))
    curation.run(plan, LocalRunner(), Quiet())
    state = parts.read_table(global_step.state_path(plan, plan.stages[2]))
    rows = [[0, 1], [1], [1, 2]] * 30
    t = next(t for t in range(1, 91) if kept_at(rows, t) >= 30)
    assert state["t"].to_pylist() == [t] * 3
    assert state["count"].to_pylist() == [30, 90, 30]
    keeps = [
        keep
        for number in range(5)
        for keep in parts.read_table(part.sidecar(plan, plan.stages[2], number))["keep"].to_pylist()
    ]
    assert 15 < sum(keeps) < 45
