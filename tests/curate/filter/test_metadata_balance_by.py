"""filter.metadata_balance with ``by``: languages are counted apart, and each has its own t."""

from __future__ import annotations

import math
import random

import numpy as np
import pyarrow as pa
import pytest

from curate.filter.metadata_balance import MetadataBalance
from curate.stage import StageError, pool_state
from tests.curate.filter.test_metadata_balance import Lists, cut, part_of, reasons, thresholds


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
