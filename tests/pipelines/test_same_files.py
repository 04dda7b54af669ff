"""Which paths of a run nodes must see, and what is said of one that does not; real nodes are in test_jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import same_files
from pipelines.errors import RecipeError
from pipelines.plan import plan_curation
from pipelines.same_files import Place
from pretrain.loop.settings import Phase, ShardSource, Sidecar, TrainSettings


class Cluster:
    """As much of Ray as the check needs. ``nodes``: name -> how it alters the call's answer."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, **nodes: Callable[..., Any]) -> None:
        self._looks = nodes
        self.asked: list[str] = []
        strategy = lambda node_id, soft: node_id  # noqa: E731
        self.util = SimpleNamespace(
            scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=strategy)
        )

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "driver")

    def nodes(self) -> list[dict[str, Any]]:
        def node(name: str, cpus: float = 1.0, is_alive: bool = True) -> dict[str, Any]:
            return {
                "NodeID": name, "Alive": is_alive, "Resources": {"CPU": cpus},
                "NodeManagerHostname": name, "NodeManagerAddress": "10.0.0.1",
            }  # fmt: skip

        others = [node(name) for name in self._looks]
        return [node("driver"), node("dead", is_alive=False), node("head", cpus=0.0), *others]

    def remote(self, function: Any) -> Any:
        def options(scheduling_strategy: str, **_: Any) -> Any:
            def ask(*arguments: Any) -> Any:
                self.asked.append(scheduling_strategy)
                return (scheduling_strategy, function, arguments)

            return SimpleNamespace(remote=lambda places, *rest: ask(tuple(places), *rest))

        return SimpleNamespace(options=options)

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        late = [one for one in references if self._looks[one[0]] is silent]
        return [one for one in references if one not in late], late

    def get(self, reference: Any) -> Any:
        name, function, arguments = reference
        return self._looks[name](function, *arguments)

    def cancel(self, reference: Any, **_: Any) -> None:
        pass


def silent(*_: Any) -> None:
    raise AssertionError("was not asked to answer")


def same(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def gone(*_: Any) -> None:
    raise RuntimeError("the node died")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_files, "_SETTLE_S", 0.0)


def test_nodes_with_the_same_folders_pass_and_leave_nothing(tmp_path: Path) -> None:
    ray, told = Cluster(a=same, b=same), []
    pool = Place("curate.pool", str(tmp_path / "pool"), True)
    read = Place("source.path", str(tmp_path), False)
    same_files.check(ray, [pool, read], told.append)
    assert ray.asked == [
        "a",
        "b",
    ]  # neither the driver's node, nor dead ones, nor those that take no tasks
    assert not list((tmp_path / "pool").iterdir())
    assert not told


def test_nodes_that_see_another_folder_are_named(tmp_path: Path) -> None:
    def elsewhere(function: Any, places: Any, *rest: Any) -> Any:
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        return function(
            [Place(place.where, str(other), place.is_written) for place in places], *rest
        )

    pool = Place("curate.pool", str(tmp_path / "pool"), True)
    with pytest.raises(RecipeError) as fault:
        same_files.check(Cluster(a=same, b=elsewhere, c=elsewhere), [pool], print)
    assert str(fault.value).splitlines() == [
        f"curate.pool = {pool.path!r}: the folder is another one, or none: a file written by the driver is not there "
        "on b (10.0.0.1, b), c (10.0.0.1, c)",
        f"hint: {same_files._SHARED_HINT}",
    ]
    assert not list((tmp_path / "pool").iterdir())


def test_a_node_that_can_only_read_is_told_and_one_whose_files_stay_there(tmp_path: Path) -> None:
    def read_only(function: Any, places: Any, word: str, index: int) -> Any:
        Path(same_files._mark(places[0].path, word, index)).touch()  # so that making it fails
        return function(places, word, index)

    def behind(function: Any, places: Any, word: str, index: int) -> Any:
        answer = function(places, word, index)
        Path(same_files._mark(places[0].path, word, index)).unlink()
        return answer

    pool = Place("curate.pool", str(tmp_path), True)
    with pytest.raises(RecipeError, match=r"it can't be written \(File exists\) on a \("):
        same_files.check(Cluster(a=read_only), [pool], print)
    with pytest.raises(RecipeError, match="does not come back to the driver"):
        same_files.check(Cluster(a=behind), [pool], print)


def test_an_input_must_be_there_and_one_that_is_nowhere_is_not_our_business(tmp_path: Path) -> None:
    def without(function: Any, places: Any, *rest: Any) -> Any:
        return function([Place(place.where, place.path + "-not", False) for place in places], *rest)

    read = Place("url_table.path", str(tmp_path), False)
    with pytest.raises(RecipeError, match="there is no such file or folder on a"):
        same_files.check(Cluster(a=without), [read], print)
    ray = Cluster(a=without)
    same_files.check(ray, [Place("url_table.path", str(tmp_path / "none"), False)], print)
    assert ray.asked == []


def test_silent_and_lost_nodes_are_noted_and_stop_nobody(tmp_path: Path) -> None:
    told: list[str] = []
    pool = Place("curate.pool", str(tmp_path), True)
    same_files.check(Cluster(a=silent, b=gone, c=same), [pool], told.append)
    assert len(told) == 1
    assert "a (10.0.0.1, a), b (10.0.0.1, b)" in told[0]


def test_the_places_of_a_curation(curate_recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "x.csv").write_text("url,caption\nu,c\n")
    (tmp_path / "words.txt").write_text("cat\n")
    recipe = curate_recipe(
        {
            "use": "source.url_table",
            "path": str(tmp_path / "t" / "*.csv"),
            "url": "url",
            "caption": "caption",
        },
        [{"use": "score.metadata_match", "entries": str(tmp_path / "words.txt")}],
    )
    places = same_files.of_curation(plan_curation(recipe))
    assert [(place.path, place.is_written) for place in places] == [
        (recipe.curate.pool, True),
        (recipe.curate.shards, True),
        (str(tmp_path / "t"), False),
        (str(tmp_path / "words.txt"), False),
    ]


def test_the_places_of_a_training_that_are_local() -> None:
    settings = TrainSettings(
        model="m", out="/shared/out", phase=(Phase(samples=1, global_batch=1, lr=1.0),),
        shards=(ShardSource(path="s3://b/shards"), ShardSource(path="/data/shards")),
        sidecar=(Sidecar(path="/data/more/*.parquet", use="keep"),),
    )  # fmt: skip
    assert same_files.of_training(settings) == [
        Place("train.out", "/shared/out", True),
        Place("train.shards", "/data/shards", False),
        Place("train.sidecar", "/data/more", False),
    ]


def test_results_in_a_job_s_own_folder_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = Place("train.out", str(tmp_path / "runs" / "x"), True)
    same_files.refuse_lost([inside])  # no job
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://x"}})
    )
    same_files.refuse_lost(
        [Place("train.out", f"{tmp_path}-other", True), Place("a", str(tmp_path / "a"), False)]
    )
    with pytest.raises(RecipeError) as fault:
        same_files.refuse_lost([inside])
    assert "--set train.out=/shared/runs/x, or s3://" in str(fault.value)
