"""Funnels from stored columns: equal to the ledger's, and to those of a fresh run with other options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.stage import KEEP, REASON, GlobalStage, RowStage, decision, error
from pipelines import curation, recipe
from pipelines.errors import RecipeError
from pipelines.funnel import Funnel, evaluate, has_values, is_deciding
from pipelines.plan import CurationPlan, plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet
from tests.tiny.stages import USE, Picture

FETCH = "tests.pipelines.test_funnel:Fetched"
SOURCE = {
    "use": f"{USE}:Numbers",
    "count": 130,
    "rows_per_part": 70,
    "bad_every": 7,
    "repeat_every": 5,
}


def stages(entries: Path, t: int = 40, most: int = 30, length: float = 15, size: float = 18) -> Any:
    """Text measures and filters, a download that fails for some, a picture's measure, more filters."""
    return [
        {"use": f"{USE}:Length"},
        {"use": "score.metadata_match", "entries": str(entries)},
        {"use": "filter.threshold", "column": "length", "at_least": length},
        {"use": "filter.metadata_balance", "t": t},
        {"use": FETCH, "dead": "number 11"},
        {"use": "filter.duplicate_image"},
        {"use": f"{USE}:PictureSize"},
        {"use": "filter.threshold", "column": "picture_bytes", "at_least": size},
        {"use": "filter.top_fraction", "column": "picture_bytes", "fraction": most / 40},
    ]


@dataclass(frozen=True, kw_only=True)
class Fetched(Picture):
    """A download whose failures last: a picture that is dead stays so."""

    lasting_errors: ClassVar[tuple[str, ...]] = ("dead",)

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        done = super().process(batch, state)
        reasons = [None if keep else error(FETCH, "dead") for keep in done["keep"].to_pylist()]
        return pa.table([*done.columns[:-2], *decision(reasons)], schema=self.writes())


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("funnel") / "entries.txt"
    path.write_text("word0\nword1\nnumber\n1\n2\n17\n33\nnumber 50\n")
    return path


def made(entries: Path, stage: Any, folder: str = "run") -> Any:
    """A recipe whose pool lies beside the entries; nothing that evaluates one writes to it."""
    curate = {name: str(entries.parent / folder / name) for name in ("pool", "shards")}
    data = {"name": "funnel", "curate": {**curate, "source": SOURCE, "stage": stage}}
    return recipe.from_data(data, "test.toml")


@pytest.fixture(scope="module")
def base(entries: Path) -> tuple[CurationPlan, dict[str, Any]]:
    """A finished run and its manifest."""
    return ran(made(entries, stages(entries)))


def ran(loaded: Any) -> tuple[CurationPlan, dict[str, Any]]:
    plan = plan_curation(loaded)
    return plan, curation.run(plan, LocalRunner(), Quiet()).manifest


def as_told(funnel: Funnel) -> list[dict[str, Any]]:
    return [
        {"use": s.stage, "rows_in": s.rows_in, "kept": s.kept, "refused": s.refused}
        for s in funnel.stages
    ]


def of_manifest(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: stage[key] for key in ("use", "rows_in", "kept", "refused")}
        for stage in manifest["stages"]
    ]


Base = tuple[CurationPlan, dict[str, Any]]


def test_without_a_change_it_is_the_ledger_s_own_funnel(base: Base) -> None:
    found = evaluate(base[0])
    assert as_told(found) == of_manifest(base[1])
    assert (found.bound, found.unmeasured) == ("exact", 0)
    assert sum(bool(stage.refused) for stage in found.stages) >= 5


@pytest.mark.parametrize(
    "change", [{"t": 4}, {"size": 18.5}, {"most": 10}, {"t": 6, "most": 5}, {"t": 1, "size": 18.5}]
)
def test_a_tighter_filter_keeps_what_a_fresh_run_keeps(
    entries: Path, base: Base, change: dict[str, Any], tmp_path: Path
) -> None:
    found = evaluate(plan_curation(made(entries, stages(entries, **change))), base[0])
    _, manifest = ran(made(entries, stages(entries, **change), folder=str(tmp_path)))
    assert as_told(found) == of_manifest(manifest)
    assert found.bound == "exact"
    assert as_told(found) != of_manifest(base[1])


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(t=st.integers(1, 80), length=st.integers(13, 17), most=st.integers(1, 40))
def test_tighter_and_looser_text_filters_are_exact_up_to_the_download(
    entries: Path, base: Base, t: int, length: int, most: int
) -> None:
    """Text measures stand above the filters, so every row has them; the rest can only be counted."""
    chosen = stages(entries, t=t, length=length, most=most)
    found = evaluate(plan_curation(made(entries, chosen)), base[0])
    fresh, manifest = ran(made(entries, chosen, folder=f"fresh-{t}-{length}-{most}"))
    wanted = of_manifest(manifest)
    download = next(n for n, p in enumerate(fresh.stages, 1) if p.use == FETCH)
    assert as_told(found)[:download] == wanted[:download]
    assert found.stages[download].rows_in == wanted[download]["rows_in"]
    if found.bound == "exact":
        assert as_told(found) == wanted
    elif found.bound == "at least":
        assert found.kept <= manifest["kept"]
    assert (found.bound == "exact") == (found.unmeasured == 0)


def test_buckets_of_a_large_state_change_nothing(
    entries: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """filter.duplicate_pair behind another filter is worked out anew, in many buckets or in one."""
    first = [{"use": "filter.threshold", "column": "row", "at_least": 1}]
    first += [{"use": "filter.duplicate_pair"}]
    plan = plan_curation(made(entries, [*first, *stages(entries, length=16)]))
    wanted = evaluate(plan, plan)
    monkeypatch.setattr(GlobalStage, "bucket_rows", 7)
    assert evaluate(plan, plan) == wanted
    assert wanted.at("filter.duplicate_pair").refused


def test_rows_that_were_never_fetched_leave_the_funnel_and_are_told(
    entries: Path, base: Base
) -> None:
    loose = stages(entries, t=70, length=13)[:-1]
    found = evaluate(plan_curation(made(entries, loose)), base[0])
    fetch = found.at(FETCH)
    assert fetch.unmeasured == fetch.rows_in - evaluate(base[0]).at(FETCH).rows_in > 0
    assert found.bound == "about"  # filter.duplicate_image below did not see them


def test_what_earlier_runs_left_is_put_together(entries: Path, tmp_path: Path) -> None:
    """Two thresholds coexist in a pool, so loosening to one that was run before is exact."""
    loose = made(entries, stages(entries, t=20), folder=str(tmp_path))
    _, wanted = ran(loose)
    tight, _ = ran(made(entries, stages(entries, t=3), folder=str(tmp_path)))
    assert as_told(evaluate(plan_curation(loose), tight)) == of_manifest(wanted)
    between = plan_curation(made(entries, stages(entries, t=10), folder=str(tmp_path)))
    assert evaluate(between, tight).bound == "exact"


def test_an_unfinished_run_is_told_as_far_as_it_went(entries: Path, tmp_path: Path) -> None:
    ran(made(entries, stages(entries)[:4], folder=str(tmp_path)))
    found = evaluate(plan_curation(made(entries, stages(entries), folder=str(tmp_path))))
    fetch = found.at(FETCH)
    assert fetch.unmeasured == fetch.rows_in > 0
    assert found.kept == 0


def test_nothing_is_written_to_the_pool(entries: Path, base: Base) -> None:
    def seen() -> list[tuple[Path, int]]:
        pool = entries.parent / "run" / "pool"
        return sorted((path, path.stat().st_mtime_ns) for path in pool.rglob("*"))

    before = seen()
    evaluate(plan_curation(made(entries, stages(entries, t=2, most=3))), base[0])
    assert seen() == before


def test_a_pool_that_is_not_there_is_said_with_a_hint(entries: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no pool\nhint: run `clip-pipe curate`"):
        evaluate(plan_curation(made(entries, stages(entries), folder=str(tmp_path))))


def test_filters_decide_and_measures_do_not(base: Base) -> None:
    deciding = [planned.use for planned in base[0].stages if is_deciding(planned)]
    assert deciding == [p.use for p in base[0].stages if p.use.startswith("filter.")]
    assert len(deciding) == 6


def test_rows_that_failed_in_another_run_would_be_asked_again(
    entries: Path, tmp_path: Path
) -> None:
    chosen = [{"use": f"{USE}:Length"}, {"use": f"{USE}:Picture", "dead": "number 11"}]
    first = {"use": "filter.threshold", "column": "length", "at_least": 10}
    tight, manifest = ran(made(entries, [chosen[0], first, chosen[1]], folder=str(tmp_path)))
    assert manifest["stages"][-1]["refused"]["error.tiny.dead"] > 1
    assert evaluate(tight).stages[-1].refused == manifest["stages"][-1]["refused"]
    first = {**first, "at_least": 9}
    found = evaluate(plan_curation(made(entries, [chosen[0], first, chosen[1]], str(tmp_path))))
    assert found.stages[-1].unmeasured == manifest["stages"][-1]["refused"]["error.tiny.dead"]
    assert (found.stages[-1].refused, found.bound) == ({}, "at least")


def test_code_from_elsewhere_is_read_and_never_run(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decider of a user's own may ask a service: what a run stored is all that is known."""
    flag = tmp_path / "up"
    flag.touch()
    first = {"use": "filter.threshold", "column": "length", "at_least": 15}
    service = {"use": f"{USE}:Service", "flag": str(flag)}
    folder = str(tmp_path)
    _, wanted = ran(made(entries, [{"use": f"{USE}:Length"}, first, service], folder=folder))

    def never(*_: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr("tests.tiny.stages.Service.process", never)
    monkeypatch.setattr("tests.tiny.stages.Service.open", never)
    tight = [{"use": f"{USE}:Length"}, {**first, "at_least": 16}, service]
    found = evaluate(plan_curation(made(entries, tight, folder=folder)))
    assert found.bound == "exact"
    assert 0 < found.kept < wanted["kept"]
    loose = [{"use": f"{USE}:Length"}, {**first, "at_least": 14}, service]
    assert evaluate(plan_curation(made(entries, loose, folder=folder))).bound == "at least"


def test_a_measure_is_known_whatever_stood_above_it(entries: Path, base: Base) -> None:
    """Values of rows are found under any fingerprint, as long as the measure itself is the same."""
    plan = plan_curation(made(entries, stages(entries, t=3)))
    fetch = next(planned for planned in plan.stages if planned.use == FETCH)
    assert has_values(plan, fetch)
    other = [*stages(entries)[:4], {"use": FETCH, "dead": "17"}]
    assert not has_values(plan, plan_curation(made(entries, other)).stages[-1])


@dataclass(frozen=True, kw_only=True)
class Marked(RowStage):
    """Refuses captions with a 3, and writes a column that a filter below reads."""

    word: str = "3"

    def reads(self) -> tuple[str, ...]:
        return ("caption",)

    def writes(self) -> pa.Schema:
        return pa.schema([("marks", pa.int32()), KEEP, REASON])

    def process(self, batch: pa.Table, state: Any) -> pa.Table:
        marks = [caption.count(self.word) for caption in batch["caption"].to_pylist()]
        reasons = ["marked" if count > 1 else None for count in marks]
        columns = [pa.array(marks, pa.int32()), *decision(reasons)]
        return pa.table(columns, schema=self.writes())


def test_columns_of_a_filter_reach_the_filters_below(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter may write small columns beside its decision; they are worked out anew with it."""
    monkeypatch.setattr("pipelines.funnel.is_deciding", lambda planned: planned.decides)
    monkeypatch.setitem(sys.modules, "marks_for_tests", sys.modules[__name__])

    def chosen(word: str) -> list[dict[str, Any]]:
        return [
            {"use": "marks_for_tests:Marked", "word": word},
            {"use": "filter.threshold", "column": "marks", "at_most": 0.5},
        ]

    ran(made(entries, chosen("3"), folder=str(tmp_path / "one")))
    found = evaluate(plan_curation(made(entries, chosen("4"), folder=str(tmp_path / "one"))))
    _, manifest = ran(made(entries, chosen("4"), folder=str(tmp_path / "two")))
    assert as_told(found) == of_manifest(manifest)
    assert found.stages[-1].refused["threshold.marks"] > 3


@dataclass(frozen=True, kw_only=True)
class SecondLook(GlobalStage):
    """Refuses by what two looks at the pool give, with a state in buckets."""

    bucket_by: ClassVar[str | None] = "length"
    bucket_rows: ClassVar[int] = 9
    most: int = 99

    def reads(self) -> tuple[str, ...]:
        return ("length",)

    def writes(self) -> pa.Schema:
        return pa.schema([KEEP, REASON])

    def summarize(self, part: pa.Table) -> pa.Table:
        return self.merge([pa.table({"length": part["length"], "rows": [1] * len(part)})])

    def merge(self, partials: Any) -> pa.Table:
        whole = pa.concat_tables([one.select(["length", "rows"]) for one in partials])
        summed = whole.group_by("length").aggregate([("rows", "sum")]).sort_by("length")
        return pa.table({"length": summed["length"], "rows": summed["rows_sum"]})

    def settle(self, states: Any) -> pa.Table:
        most = pc.max(pa.concat_tables(states)["rows"]).as_py()
        return pa.table({"limit": [most], "seen": [0]})

    def passes(self) -> int:
        return 2

    def look_again(self, part: pa.Table, state: pa.Table) -> pa.Table:
        return pa.table({"seen": [pc.sum(part["length"]).as_py()]})

    def adjust(self, state: pa.Table, partials: Any) -> pa.Table:
        seen = sum(partial["seen"][0].as_py() for partial in partials)
        return pa.table({"limit": state["limit"], "seen": [seen]})

    def decide(self, part: pa.Table, state: pa.Table) -> pa.Table:
        parity = (state["limit"][0].as_py() + state["seen"][0].as_py()) % self.most
        lengths = part["length"].to_pylist()
        reasons = ["odd" if (n * 7 + parity) % 3 == 0 else None for n in lengths]
        return pa.table(decision(reasons), schema=self.writes())


def test_a_state_in_buckets_is_looked_at_as_often_as_a_run_does(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.funnel.is_deciding", lambda planned: planned.decides)
    look = {"use": "tests.pipelines.test_funnel:SecondLook"}
    folder = str(tmp_path)
    ran(made(entries, [{"use": f"{USE}:Length"}, look], folder=folder))
    kept = set()
    for most in (97, 98, 100):
        other = made(entries, [{"use": f"{USE}:Length"}, {**look, "most": most}], folder=folder)
        found = evaluate(plan_curation(other))
        assert as_told(found) == of_manifest(ran(other)[1])
        kept.add(found.kept)
    assert len(kept) > 1
