"""A damaged part is named, set aside and done again; what stands on it follows, what it still holds is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curate.contract import done, parts, storage
from pipelines import curation, damage, part
from pipelines.errors import PartDamaged, RecipeError
from pipelines.plan import CurationPlan, plan_curation
from pipelines.recipe import from_data
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet, ledger, run, shard_bytes
from tests.tiny import stages


class Told(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def again(recipe: Any) -> list[str]:
    """Run once more, as if no shards had been made; what was said of damage."""
    storage.remove(recipe.curate.shards)
    told = Told()
    curation.run(plan_curation(recipe), LocalRunner(), told, recipe)
    return [line for line in told.lines if "is damaged and" in line]


def cut(path: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


FILES: dict[str, Callable[[CurationPlan], str]] = {
    "rows": lambda plan: plan.pool.rows_path(2),
    "source's decisions": lambda plan: part.sidecar(plan, plan.source, 2),
    "row stage": lambda plan: part.sidecar(plan, plan.stages[1], 2),
    "global stage": lambda plan: part.sidecar(plan, plan.stages[2], 2),
    "pictures": lambda plan: plan.pool.images_path(plan.stages[3].fingerprint, 2),
    "stage with pictures": lambda plan: part.sidecar(plan, plan.stages[3], 2),
}


def made(folder: Path) -> Any:
    curate = {
        "pool": f"{folder}/pool", "shards": f"{folder}/shards", "stage": STAGES,
        "source": {**SOURCE, "count": 23}, "shard": {"samples_per_shard": 7},
    }  # fmt: skip
    return from_data({"name": "test", "curate": curate}, "test.toml")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run that ended, of three parts."""
    folder = tmp_path_factory.mktemp("once")
    run(made(folder))
    return folder


@pytest.fixture
def ran(once: Path, tmp_path: Path) -> Any:
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return made(tmp_path)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("rows", "cut"),
        ("global stage", "cut"),
        ("pictures", "gone"),
        ("stage with pictures", "manifest"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *((n, "cut") for n in FILES if n not in ("rows", "global stage")),
                ("rows", "gone"),
                ("row stage", "gone"),
                ("rows", "manifest"),
            )
        ),
    ],
)
def test_a_run_meets_damage_at_its_start(ran: Any, name: str, how: str) -> None:
    plan = plan_curation(ran)
    before, rows = shard_bytes(ran), ledger(ran)
    path = FILES[name](plan)
    hurt = done.manifest_path(path) if how == "manifest" else path
    Path(hurt).unlink() if how == "gone" else cut(hurt)
    lines = again(ran)
    assert len(lines) == 1
    assert "part 2 is damaged and done again: " in lines[0]
    assert hurt in lines[0]
    assert ".damaged" in lines[0]
    if how != "gone":
        assert Path(f"{hurt}{done.ASIDE}").exists()
    assert shard_bytes(ran) == before
    assert ledger(ran) == rows
    assert not again(ran)


_QUICK = ("rows", "global stage", "pictures")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in _QUICK else pytest.mark.slow) for n in FILES]
)
def test_a_worker_meets_damage(ran: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the same size, changed: only who reads them sees it."""
    before, rows = shard_bytes(ran), ledger(ran)
    plan = plan_curation(ran)
    path = FILES[name](plan)
    Path(path).write_bytes(b"\xff" * Path(path).stat().st_size)
    lines = again(ran)
    assert len(lines) == 1, "named once, and mended"
    assert path in lines[0]
    assert shard_bytes(ran) == before
    assert ledger(ran) == rows


def test_damage_in_the_middle_of_a_run(ran: Any) -> None:
    """A file is cut after the run has looked at it."""
    before = shard_bytes(ran)
    storage.remove(ran.curate.shards)
    plan = plan_curation(ran)
    path = part.sidecar(plan, plan.stages[1], 1)
    is_cut: list[bool] = []

    class Clumsy(LocalRunner):
        def map(self, function: Any, *rest: Any) -> Any:
            if function.__name__ == "pack" and not is_cut:
                is_cut.append(True)
                cut(path)
            return super().map(function, *rest)

    told = Told()
    curation.run(plan, Clumsy(), told, ran)
    assert len([line for line in told.lines if path in line]) == 1
    assert "part 1 is damaged and done again" in "".join(told.lines)
    assert shard_bytes(ran) == before


def test_what_is_whole_is_not_set_aside(ran: Any) -> None:
    """A disk that can't be read now and then is no damage."""
    plan = plan_curation(ran)
    path = part.sidecar(plan, plan.stages[1], 0)
    said: list[str] = []
    fault = damage.as_failure(done.Damaged(path, "can't be read"))
    assert isinstance(fault, PartDamaged)
    assert "hint: the same command" in str(fault)

    def journey(plan: CurationPlan) -> None:
        raise fault

    with pytest.raises(PartDamaged):
        damage.mended(journey, plan, said.append)
    assert part.is_done(plan, plan.stages[1], 0)
    assert not damage.take_back(plan, f"{ran.curate.pool}/pool.json", "?", said.append)
    assert not said


def test_a_part_that_is_another_one_now_takes_along_what_stood_on_it(ran: Any) -> None:
    """As where a picture was fetched again, and is another one."""
    plan = plan_curation(ran)
    fetched, sizes = plan.stages[3], plan.stages[4]
    assert [(one.name, other) for one, other in part.standing_on(plan, fetched)] == [
        (sizes.name, True)
    ]
    path, beside = part.sidecar(plan, fetched, 2), part.beside(plan, fetched, 2)
    table, told = parts.read_part(path), done.checked(path)
    done.set_aside(path, beside)
    images = table["uid"].to_pylist()
    written = parts.write_images(beside["images"], images, [b"\xff\xd8\xffother"] * len(images))
    part.commit(plan, fetched, 2, table, told, {"images": (beside["images"], written)})
    assert part.is_done(plan, fetched, 2)
    assert [part.is_done(plan, sizes, n) for n in range(3)] == [True, True, False]
    again(ran)
    found = parts.read_part(part.sidecar(plan, sizes, 2))["picture_bytes"].drop_null()
    assert set(found.to_pylist()) == {8}


def as_version_1(pool: str) -> None:
    """A pool as it was before parts had manifests: counts in the footer, and files that were there were done."""
    described = json.loads(Path(pool, "pool.json").read_text())
    Path(pool, "pool.json").write_text(json.dumps({**described, "schema_version": 1}))
    for path in Path(pool).rglob("part-*.json"):
        table_path = path.with_suffix(".parquet")
        stats = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("bytes", "sha256", "images")}  # fmt: skip
        table = pq.ParquetFile(table_path).read()
        metadata = {**(table.schema.metadata or {}), b"clip_pipe": json.dumps(stats).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), table_path)
        path.unlink()


def test_a_pool_of_the_first_version_is_adopted(ran: Any) -> None:
    before = shard_bytes(ran)
    as_version_1(ran.curate.pool)
    storage.remove(ran.curate.shards)
    notes = Path(ran.curate.pool, "work", "abc-notes", "part-00001")
    notes.mkdir(parents=True)
    changed = {p: p.stat().st_mtime_ns for p in Path(ran.curate.pool).rglob("part-*.parquet")}
    told = Told()
    assert not curation.run(plan_curation(ran), LocalRunner(), told, ran).already_done
    assert any("made by an earlier clip-pipe; its 21 files of parts got" in t for t in told.lines)
    assert shard_bytes(ran) == before
    assert {p: p.stat().st_mtime_ns for p in changed} == changed, "nothing was done again"
    assert json.loads(Path(ran.curate.pool, "pool.json").read_text())["schema_version"] == 2
    plan = plan_curation(ran)
    seen = part.look(plan, plan.stages[3], 0)
    assert seen.stats is not None
    assert seen.stats["images"]["bytes"] == Path(plan.pool.images_path(plan.stages[3].fingerprint, 0)).stat().st_size  # fmt: skip
    assert not again(ran)


def test_a_pool_of_the_future_is_refused(ran: Any) -> None:
    path = Path(ran.curate.pool, "pool.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 3}))
    storage.remove(ran.curate.shards)
    with pytest.raises(RecipeError, match=r"schema version 3, this clip-pipe reads 2\nhint: "):
        run(ran)


def test_what_a_damaged_part_still_holds_is_not_asked_again(
    ran: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tar that was cut only the rows behind the cut; of one whose bytes changed, all that had a picture."""
    before = shard_bytes(ran)
    plan = plan_curation(ran)
    path = FILES["pictures"](plan)
    asked: list[str] = []
    process = stages.Picture.process

    def counted(self: Any, batch: Any, state: Any) -> Any:
        asked.extend(batch["caption"].to_pylist())
        return process(self, batch, state)

    monkeypatch.setattr(stages.Picture, "process", counted)
    held = parts.read_images(path)
    assert len(held) >= 3
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: 1024 + 512 + 3])  # the first whole, of the second a few bytes
    assert len(again(ran)) == 1
    assert len(asked) == len(held) - 1
    assert shard_bytes(ran) == before
    asked.clear()
    Path(path).write_bytes(data.replace(b"\xff\xd8\xff", b"\xff\xd8\xfe", 1))
    assert damage.take_back(plan, path, "?", lambda text: None)
    assert not again(ran)
    assert len(asked) == len(held)
    assert shard_bytes(ran) == before


def test_a_part_that_is_done_again_is_counted_once(curate_recipe: Callable[..., Any]) -> None:
    recipe = curate_recipe(SOURCE, STAGES)
    run(recipe)
    columns = Path(recipe.curate.pool) / "columns"

    def counts() -> dict[str, Any]:
        told = {
            path.parent.name: json.loads(path.read_text())
            for path in columns.glob("*/manifest.json")
        }
        return {n: (one["parts"], one["rows_in"], one["refused"]) for n, one in told.items()}

    before = counts()
    shutil.rmtree(recipe.curate.shards)
    (cut,) = columns.glob("tests.tiny.stages.PictureSize*/part-00001.parquet")
    cut.write_bytes(cut.read_bytes()[:50])
    run(recipe)
    assert counts() == before
