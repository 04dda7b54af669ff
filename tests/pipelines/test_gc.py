"""What no recipe refers to goes, after asking; nothing else does, and a crash in the middle harms nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from curate.contract import done, listing, storage
from pipelines import gc, lease, verify
from pipelines.errors import RecipeError, RunFailed
from tests.tiny import whole_run

CHANGED = [{**whole_run.STAGES[0], "plus": 3}, *whole_run.STAGES[1:]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool that two recipes ran over, the second with another option in its first stage."""
    folder = tmp_path_factory.mktemp("made")
    whole_run.make(folder, name="old", shards=str(folder / "old"))
    whole_run.make(folder, stages=CHANGED, name="new")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return whole_run.copied(made, tmp_path)


def collect(
    run: Path, *keep: str, yes: bool = True, **more: Any
) -> tuple[list[str], bool, list[str]]:
    """(names of what would go, whether it went, all that was said or asked)."""
    said: list[str] = []
    asked: dict[str, Any] = {"pictures": False, "dry_run": False, **more}

    def ask(question: str) -> bool:
        said.append(question)
        return yes

    def show(found: Sequence[gc.Leftover]) -> None:
        said.extend(gc.lines(found, asked["pictures"]))

    gone, removed = gc.run(str(run / "pool"), keep, ask=ask, say=said.append, show=show, **asked)
    return sorted(one.name.rpartition("-")[0].rpartition(".")[2] for one in gone), removed, said


def there(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in (run / "pool").rglob("*") if path.is_file()}


def test_a_run_that_ended_while_the_lease_was_waited_for_counts(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def held(*_: Any) -> Iterator[None]:
        shutil.copy(run / "old.toml", run / "pool" / "recipe.toml")
        yield

    def named(dry_run: bool) -> set[str]:
        words: dict[str, Any] = {"ask": lambda _: False, "say": print, "show": lambda _: None}
        gone, _ = gc.run(str(run / "pool"), (), pictures=False, dry_run=dry_run, **words)
        return {one.name for one in gone if one.kind == "columns"}

    before = named(dry_run=True)
    monkeypatch.setattr(lease, "held", held)
    assert named(dry_run=False).isdisjoint(before)


def test_sidecars_of_old_options_go_and_pictures_stay(run: Path) -> None:
    before = there(run)
    names, removed, said = collect(run)
    assert (names, removed) == (["Common", "Length", "PictureSize"], True)
    gone = before - there(run)
    assert {path.split("/")[1] for path in gone} == {"columns"}
    assert not any("Picture-" in path for path in gone)
    assert any("stays without --pictures" in line for line in said)
    assert said[-1].startswith("Delete these 3 (")
    assert not (run / "pool" / ".lease").exists()
    assert verify.check(str(run / "pool"))["fine"]
    path = whole_run.write(run, CHANGED, name="new")
    shutil.rmtree(run / "shards")
    rows = json.loads(whole_run.run(path))
    assert rows["kept"] == 9


def test_pictures_go_when_they_are_asked_for(run: Path) -> None:
    names, removed, _ = collect(run, pictures=True)
    assert (names, removed) == (["Common", "Length", "Picture", "PictureSize"], True)
    assert len(listing.folders(str(run / "pool" / "images"))) == 1
    assert verify.check(str(run / "pool"))["fine"]
    assert collect(run, pictures=True)[0] == []


def test_a_recipe_that_is_named_keeps_its_own(run: Path) -> None:
    assert collect(run, str(run / "old.toml"), pictures=True) == (
        [], False, ["nothing to remove: recipes refer to all that is there"],
    )  # fmt: skip


@pytest.mark.parametrize("more", [{"dry_run": True}, {"yes": False}])
def test_nothing_goes_unasked(run: Path, more: dict[str, Any]) -> None:
    before = there(run)
    names, removed, said = collect(run, **more)
    assert (len(names), removed) == (3, False)
    assert there(run) == before
    assert any(line.startswith("Delete") for line in said) == ("yes" in more)


def test_refused_while_a_run_is_at_work(run: Path) -> None:
    before = there(run)
    with lease.held((str(run / "pool"),)), pytest.raises(RunFailed, match="a run is at work"):
        collect(run)
    assert there(run) == before


def test_recipes_that_can_t_be_read_or_are_of_another_pool_end_it(
    run: Path, tmp_path: Path
) -> None:
    other = whole_run.write(tmp_path, name="other", pool=str(tmp_path / "elsewhere"))
    with pytest.raises(RecipeError, match="its pool is"):
        collect(run, other)
    (run / "pool" / "recipe.toml").write_text('name = "x"\n[curate]\npool = 3\n')
    with pytest.raises(RecipeError):
        collect(run)
    (run / "pool" / "recipe.toml").unlink()
    with pytest.raises(RecipeError, match="name the recipes that use it"):
        collect(run)
    assert collect(run, str(run / "new.toml"))[1]
    with pytest.raises(RecipeError, match="no pool is there"):
        collect(run / "shards")


def test_what_a_stage_under_way_takes_over_stays(run: Path) -> None:
    """Of the last part nothing is done under the new options: the old values are still of use."""
    (folder,) = [
        path for path in (run / "pool" / "columns").glob("*Picture-*") if _is_new(run, path)
    ]
    done.withdraw(str(folder / "part-00005.parquet"))
    assert "Picture" not in collect(run, pictures=True)[0]


def _is_new(run: Path, folder: Path) -> bool:
    told = json.loads((run / "shards" / "manifest.json").read_text())
    return any(folder.name.endswith(stage["fingerprint"][:8]) for stage in told["stages"])


def test_work_that_nobody_needs_and_files_that_were_set_aside(run: Path) -> None:
    pool = run / "pool"
    (pool / "work" / "deadbeef" / "ledger").mkdir(parents=True)
    (pool / "work" / "deadbeef" / "ledger" / "part-00000.json").write_text("{}")
    (pool / "work" / "failures.json").write_text("{}")
    (folder,) = [path for path in (pool / "columns").glob("*Length-*") if _is_new(run, path)]
    (folder / "part-00001.parquet.damaged").write_bytes(b"x" * 10)
    (folder / "part-00077.parquet.damaged").write_bytes(b"not done again")
    (pool / "rows" / "part-00001.parquet.damaged").write_bytes(b"rows are not touched")
    before = there(run)
    collect(run)
    gone = {
        path for path in before - there(run) if "columns/" not in path or path.endswith("damaged")
    }
    assert gone == {
        "pool/work/deadbeef/ledger/part-00000.json",
        f"pool/columns/{folder.name}/part-00001.parquet.damaged",
    }


def test_a_crash_in_the_middle_leaves_nothing_that_looks_done(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    whole = listing.remove_files

    def dying(paths: Any) -> None:
        for path in list(paths):
            if len(removed) == 20:
                raise KeyboardInterrupt
            removed.append(path)
            whole([path])

    monkeypatch.setattr(listing, "remove_files", dying)
    with pytest.raises(KeyboardInterrupt):
        collect(run, pictures=True)
    monkeypatch.undo()
    assert verify.check(str(run / "pool"))["fine"]
    assert collect(run, pictures=True)[1]  # the lease is free, and the rest goes


def test_what_says_done_goes_before_anything_else(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    removed = listing.remove_files
    monkeypatch.setattr(listing, "remove_files", lambda paths: calls.append(list(paths)) or removed(calls[-1]))  # fmt: skip
    collect(run, pictures=True)
    kinds = [{path.endswith(".json") for path in paths} for paths in calls if paths]
    assert kinds[:2] == [{True}, {False}]
    assert all(len(kind) == 1 for kind in kinds)


def test_what_it_would_cost_to_make_again(run: Path) -> None:
    for path in (run / "pool" / "columns").glob("*Length-*/part-*.json"):
        told = json.loads(path.read_text())
        path.write_text(json.dumps({**told, "seconds": 600.0}))
    question = collect(run)[2][-1]
    assert "to make it again took 1 h 00 min of work" in question


def test_the_record_says_what_goes(run: Path) -> None:
    found: list[gc.Leftover] = []
    gc.run(
        str(run / "pool"),
        (),
        pictures=False,
        dry_run=True,
        ask=lambda _: False,
        say=print,
        show=found.extend,
    )
    told = json.loads(gc.record("p", found, False, False))
    assert {entry["kind"]: entry["goes"] for entry in told["leftovers"]} == {
        "pictures": False,
        "columns": True,
    }
    assert told["leftovers"][0]["recipe"] == "old"


@pytest.mark.net
@pytest.mark.slow
def test_in_an_object_store(run: Path, bucket: str, tmp_path: Path) -> None:
    for path in (run / "pool").rglob("*"):
        if path.is_file():
            with storage.committed(f"{bucket}/pool/{path.relative_to(run / 'pool')}") as file:
                file.write(path.read_bytes())
    gone, removed = gc.run(f"{bucket}/pool", (), pictures=True, dry_run=False, ask=lambda _: True, say=print, show=lambda _: None)  # fmt: skip
    assert (len(gone), removed) == (4, True)
    assert len(listing.folders(f"{bucket}/pool/images")) == 1
    assert not storage.exists(f"{bucket}/pool/.lease")


def test_bytes_in_words() -> None:
    assert [gc.told_bytes(n) for n in (5, 5000, 5e6, 5e12)] == [
        "5 B",
        "4.9 KiB",
        "4.8 MiB",
        "4.5 TiB",
    ]
