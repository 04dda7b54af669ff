"""filter.metadata_balance: MetaCLIP's probability by hand, t solved, languages, and no dependence on order or cut."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.contract import parts
from curate.contract.draw import draw, pair_uid
from curate.filter import balancing
from curate.filter.metadata_balance import MetadataBalance
from curate.stage import StageError, pool_state
from pipelines import curation, global_step, part
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet

Lists = list[list[int] | None]


def part_of(entries: Lists, first: int = 0, languages: list[str | None] | None = None) -> pa.Table:
    uids = [pair_uid(f"http://host/{first + n}", "x") for n in range(len(entries))]
    columns = {
        "uid": pa.array(uids, pa.string()),
        "entries": pa.array(entries, pa.list_(pa.int32())),
    }
    if languages is not None:
        columns["language"] = pa.array(languages, pa.string())
    return pa.table(columns)


def cut(whole: pa.Table, pieces: int) -> list[pa.Table]:
    edges = [len(whole) * n // pieces for n in range(pieces + 1)]
    return [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]


def reasons(stage: MetadataBalance, parts: list[pa.Table]) -> list[str | None]:
    state = pool_state(stage, lambda: parts)
    decided = [stage.decide(part, state) for part in parts]
    assert all(table.schema == stage.writes() for table in decided)
    for table in decided:
        assert table["keep"].to_pylist() == [
            reason is None for reason in table["reason"].to_pylist()
        ]
    return [reason for table in decided for reason in table["reason"].to_pylist()]


def thresholds(stage: MetadataBalance, parts: list[pa.Table]) -> dict[str | None, int]:
    """The t of each group."""
    state = pool_state(stage, lambda: parts)
    found = set(zip(state["group"].to_pylist(), state["t"].to_pylist(), strict=True))
    assert len(dict(found)) == len(found), "a group has one t"
    return dict(found)


def zipf_entries(rows: int, seed: int = 0) -> Lists:
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


def test_the_state_is_for_others_to_read() -> None:
    """Forecast, what-if and the report read these columns of the kept state."""
    state = pool_state(MetadataBalance(t=7), lambda: [part_of([[1, 2], [2]])])
    assert state.schema.names[:4] == ["entry", "count", "group", "t"]
    assert [str(kind) for kind in state.schema.types[:4]] == ["int32", "int64", "string", "int64"]
    assert state.select(["entry", "count", "group", "t"]).to_pylist() == [
        {"entry": 1, "count": 1, "group": None, "t": 7},
        {"entry": 2, "count": 2, "group": None, "t": 7},
    ]


def test_probability_by_hand() -> None:
    part = part_of([[0]] * 7 + [[1]] * 2 + [[2], [0, 1], [0, 1], [0, 2], []])
    stage = MetadataBalance(t=2)
    state = pool_state(stage, lambda: [part])
    assert state["count"].to_pylist() == [10, 4, 2]
    chances = stage.probabilities(part, state).tolist()
    assert chances[6:] == pytest.approx(
        [0.2, 0.5, 0.5, 1.0, 1 - 0.8 * 0.5, 1 - 0.8 * 0.5, 1.0, math.nan], nan_ok=True
    )


def test_a_row_stays_iff_its_draw_is_under_its_probability() -> None:
    part = part_of([[0]] * 50)
    found = reasons(MetadataBalance(t=10, seed=3), [part])
    expected = [
        None if draw(uid, "balance:3") < 10 / 50 else "balanced" for uid in part["uid"].to_pylist()
    ]
    assert found == expected
    assert None in found
    assert "balanced" in found


@pytest.mark.parametrize(
    "stage",
    [
        *(MetadataBalance(t=t) for t in (1, 5, 40)),
        MetadataBalance(keep=9000),
        MetadataBalance(tail_share=0.3),
    ],
)
def test_yield_is_what_the_probabilities_promise(stage: MetadataBalance) -> None:
    part = part_of(zipf_entries(20_000))
    chances = stage.probabilities(part, pool_state(stage, lambda: [part]))
    chances = chances[~np.isnan(chances)]
    sigma = math.sqrt((chances * (1 - chances)).sum())
    kept = reasons(stage, [part]).count(None)
    assert abs(kept - chances.sum()) < 3 * sigma
    assert 0 < kept < len(chances)


def test_the_tail_is_flattened_and_rare_entries_are_whole() -> None:
    entries = [[0]] * 5000 + [[n] for n in range(1, 100) for _ in range(3)]
    found = reasons(MetadataBalance(t=100), [part_of(entries)])
    assert found[5000:] == [None] * 297
    assert 60 < found[:5000].count(None) < 140


def test_t_at_the_largest_count_keeps_every_matched_row() -> None:
    entries: Lists = [found for found in zipf_entries(2000) if found]
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


def kept_at(entries: Lists, t: int) -> Fraction:
    """The expected number of kept rows, exactly."""
    counts = Counter(entry for row in entries for entry in row or ())
    return sum(
        (
            1 - math.prod(1 - min(Fraction(1), Fraction(t, counts[e])) for e in row)
            for row in entries
            if row
        ),
        Fraction(0),
    )


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.sets(st.integers(0, 5), max_size=4).map(sorted), min_size=1, max_size=40),
    keep=st.integers(1, 45),
    keep_unmatched=st.booleans(),
)
def test_keep_is_the_smallest_t_that_is_expected_to_keep_as_many(
    entries: Lists, keep: int, keep_unmatched: bool
) -> None:
    """Against exact fractions: also where the expected number is a whole one."""
    parts = cut(part_of(entries), 3)
    found = thresholds(MetadataBalance(keep=keep, keep_unmatched=keep_unmatched), parts)
    largest = max(Counter(entry for row in entries for entry in row or ()).values(), default=0)
    free = sum(not row for row in entries) if keep_unmatched else 0
    enough = (t for t in range(1, largest + 1) if kept_at(entries, t) + free >= keep)
    assert found == ({None: next(enough, largest)} if largest else {})


@pytest.mark.parametrize(("keep", "kept"), [(1, 1), (40, 40), (41, 40), (10**12, 40)])
def test_keep_of_one_of_all_and_of_more(keep: int, kept: int) -> None:
    part = part_of([[0]] * 40 + [[]] * 3)
    found = reasons(MetadataBalance(keep=keep), [part])
    assert found.count(None) == kept if keep > 1 else found.count(None) < 8
    assert found.count("unmatched") == 3


def test_keep_is_kept_nearly() -> None:
    parts = cut(part_of(zipf_entries(30_000)), 4)
    stage = MetadataBalance(keep=12_345)
    assert abs(reasons(stage, parts).count(None) - 12_345) < 3 * math.sqrt(12_345)
    state = pool_state(stage, lambda: parts)
    t = state["t"][0].as_py()
    units = [
        sum(
            balancing.expected_units(part["entries"], *counts_of(state), np.array([[t - 1, t]]))[n]
            for part in parts
        )
        for n in range(2)
    ]
    assert units[0] < 12_345 << balancing.UNIT_BITS <= units[1]


def counts_of(state: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    return state["entry"].to_numpy(), state["count"].to_numpy()


def test_unmatched_rows_count_for_keep_where_they_are_kept() -> None:
    part = part_of([[0]] * 40 + [None] * 30)
    assert thresholds(MetadataBalance(keep=40), [part]) == {None: 40}
    assert thresholds(MetadataBalance(keep=40, keep_unmatched=True), [part]) == {None: 10}
    assert thresholds(MetadataBalance(keep=20, keep_unmatched=True), [part]) == {None: 1}


def test_t_of_a_tail_share() -> None:
    entries: Lists = [[e] for e, count in enumerate([1, 2, 3, 4, 90]) for _ in range(count)]
    assert thresholds(MetadataBalance(tail_share=0.06), cut(part_of(entries), 3)) == {None: 3}


def languages_part() -> pa.Table:
    """English has entries of 1, 2, 3, 4 and 90 rows; German of 10, 20, 30, 40 and 900 of the same ids."""
    english = [[e] for e, count in enumerate([1, 2, 3, 4, 90]) for _ in range(count)]
    german = [[e] for e, count in enumerate([10, 20, 30, 40, 900]) for _ in range(count)]
    unknown: Lists = [[0]] * 5 + [[]] * 5
    names = ["en"] * len(english) + ["de"] * len(german) + [None] * 10
    order = list(range(len(names)))
    random.Random(1).shuffle(order)
    entries = [*english, *german, *unknown]
    return part_of([entries[n] for n in order], 0, [names[n] for n in order])


def test_values_of_a_column_are_counted_apart() -> None:
    parts = cut(languages_part(), 7)
    state = pool_state(MetadataBalance(t=4, by="language", reference=""), lambda: parts)
    assert state.select(["group", "entry", "count", "t"]).to_pylist() == [
        {"group": group, "entry": entry, "count": count, "t": 4}
        for group, counts in (
            ("de", [10, 20, 30, 40, 900]),
            ("en", [1, 2, 3, 4, 90]),
            (None, [5]),
        )
        for entry, count in enumerate(counts)
    ]


def test_a_language_gets_its_t_from_the_reference_s_tail() -> None:
    """English at t = 4 has a tail of 6 matches in 100; German's count nearest to that share is 30."""
    parts = cut(languages_part(), 7)
    stage = MetadataBalance(t=4, by="language")
    assert thresholds(stage, parts) == {"en": 4, "de": 30, None: 5}
    whole = languages_part()
    chances = stage.probabilities(whole, pool_state(stage, lambda: parts))
    by_row = {
        (language, *(entries or ())): chance
        for language, entries, chance in zip(
            whole["language"].to_pylist(),
            whole["entries"].to_pylist(),
            chances.tolist(),
            strict=True,
        )
    }
    assert by_row[("en", 4)] == pytest.approx(4 / 90)
    assert by_row[("en", 3)] == 1.0
    assert by_row[("de", 3)] == pytest.approx(30 / 40)
    assert by_row[("de", 2)] == 1.0
    assert by_row[(None, 0)] == 1.0
    assert math.isnan(by_row[(None,)])


def test_each_value_has_its_own_tail_share() -> None:
    found = thresholds(MetadataBalance(tail_share=0.06, by="language"), [languages_part()])
    assert found == {"en": 3, "de": 30, None: 5}


@pytest.mark.parametrize("reference", ["en", "", "de"])
def test_keep_over_languages(reference: str) -> None:
    """The t of the reference is the smallest whose thresholds are expected to keep as many."""
    whole = languages_part()
    stage = MetadataBalance(keep=400, by="language", reference=reference)
    found = thresholds(stage, cut(whole, 7))

    def expected(t: int) -> float:
        given = MetadataBalance(t=t, by="language", reference=reference)
        return np.nansum(given.probabilities(whole, pool_state(given, lambda: [whole])))

    t = found[reference or None]
    assert expected(t) >= 400 - 1e-9 > expected(t - 1)
    assert found == thresholds(MetadataBalance(t=t, by="language", reference=reference), [whole])
    everything = MetadataBalance(keep=10**9, by="language", reference=reference)
    assert set(reasons(everything, [whole])) == {None, "unmatched"}


def test_a_reference_that_is_not_there_ends_the_run() -> None:
    part = languages_part()
    for stage in (
        MetadataBalance(t=4, by="language", reference="fr"),
        MetadataBalance(keep=4, by="language", reference="fr"),
    ):
        with pytest.raises(StageError, match=r'reference = "fr".* hint: .*: de, en, None'):
            pool_state(stage, lambda: [part])


def test_a_dictionary_of_languages_will_do() -> None:
    plain, stage = languages_part(), MetadataBalance(t=4, by="language")
    encoded = plain.set_column(2, "language", plain["language"].dictionary_encode())
    assert reasons(stage, cut(encoded, 3)) == reasons(stage, [plain])
    stage.check_columns({"entries": pa.list_(pa.int32()), "language": encoded["language"].type})
    with pytest.raises(ValueError, match=r"'language' is int64, not text\. hint: "):
        stage.check_columns({"entries": pa.list_(pa.int32()), "language": pa.int64()})


STAGES = [
    MetadataBalance(t=4),
    MetadataBalance(keep=900),
    MetadataBalance(tail_share=0.3),
    MetadataBalance(t=4, by="language"),
    MetadataBalance(keep=900, by="language"),
    MetadataBalance(tail_share=0.3, by="language", keep_unmatched=True),
]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 0}, r"t = 0, no row would be kept\. hint: t is a number of rows"),
        ({"keep": 0}, r"keep = 0, no row would be kept\. hint: keep is a number of rows"),
        ({"t": 1 << 63}, r"more rows than any pool has\. hint: t is at most"),
        ({"keep": 1 << 63}, r"more rows than any pool has\. hint: keep is at most"),
        ({}, r"none of t, keep and tail_share is given\. hint: set one of t"),
        ({"t": 5, "keep": 9}, r"t = 5 and keep = 9 is given\. hint: set one of t"),
        ({"tail_share": 0.0}, r"tail_share = 0\.0\. hint: a share of all matches"),
        ({"tail_share": 6.0}, r"tail_share = 6\.0\. hint: a share of all matches"),
        ({"t": 5, "reference": "de"}, r'reference = "de" and no by\. hint: name the column'),
        (
            {"tail_share": 0.06, "by": "language", "reference": "de"},
            r'reference = "de" and tail_share = 0\.06, which has no reference\. hint: ',
        ),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetadataBalance(**options).check()


@pytest.mark.parametrize("stage", STAGES)
def test_options_that_work_are_taken(stage: MetadataBalance) -> None:
    stage.check()
    assert stage.reads() == (("entries", "language") if stage.by else ("entries",))


def test_oversample_multiplies_keep_exactly() -> None:
    assert MetadataBalance(keep=100, oversample=1.1).wanted() == 110
    assert MetadataBalance(keep=3, oversample=1.5).wanted() == 5
    assert MetadataBalance(keep=7).wanted() == 7
    assert MetadataBalance(t=7).wanted() is None
    parts = cut(part_of(zipf_entries(6_000)), 3)
    more = MetadataBalance(keep=1_000, oversample=1.5)
    plain = MetadataBalance(keep=1_500)
    assert reasons(more, parts) == reasons(plain, parts)


def test_a_larger_allowance_keeps_what_a_smaller_one_keeps() -> None:
    part = part_of(zipf_entries(3_000))
    kept = [
        {n for n, reason in enumerate(reasons(MetadataBalance(keep=300, oversample=f), [part])) if not reason}
        for f in (1.0, 1.0001, 1.4, 3.0)
    ]  # fmt: skip
    assert kept[0] <= kept[1] <= kept[2] <= kept[3]
    assert len(kept[0]) < len(kept[2]) < len(kept[3])


def test_what_was_observed_becomes_a_factor() -> None:
    stage = MetadataBalance(keep=300, oversample="observed")
    assert stage.rows_wanted() == 300
    assert stage.after_losses(1.0) == MetadataBalance(keep=300)
    assert stage.after_losses(0.7).oversample == 1.428572
    assert stage.after_losses(0.7).wanted() == 429
    assert MetadataBalance(keep=300, oversample=2).rows_wanted() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 5, "oversample": 0.9}, r"oversample = 0.9. hint: 1 or more"),
        ({"keep": 5, "oversample": math.inf}, "1 or more"),
        ({"keep": 5, "oversample": math.nan}, "1 or more"),
        ({"keep": 5, "oversample": "seen"}, '"observed"'),
        ({"t": 5, "oversample": 1.2}, "no keep"),
        ({"tail_share": 0.1, "oversample": "observed"}, "no keep"),
        ({"keep": 5, "oversample": 1.2, "by": "language"}, 'by = "language"'),
        ({"keep": 1 << 61, "oversample": 3.0}, "more rows than any pool has"),
    ],
)
def test_an_allowance_that_means_nothing_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MetadataBalance(**options).check()
