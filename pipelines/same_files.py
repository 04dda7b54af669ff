"""Does every node of a cluster see the folders of a run? A file written here is read there, and the other way round.

A pool on the driver's own disk would be half on every node, and found out after hours. Nodes that join later are
not asked. Given ``ray`` by `run_ray`, imports none.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from curate.contract import disk, storage
from pipelines import joining
from pipelines.errors import RecipeError
from pipelines.plan import CurationPlan
from pretrain.loop.settings import TrainSettings

_ANSWER_S = 60.0  # for a node to start a process and look
_SETTLE_S = 5.0  # for a network file system to show a new file
_SHARED_HINT = (
    "put it on a file system that all nodes mount at the same path, or on s3://; to use this machine alone, leave "
    "--address out"
)


@dataclass(frozen=True)
class Place:
    """One local path of a run: ``where`` the recipe says it; files are made there, or it is only read."""

    where: str
    path: str
    is_written: bool


def of_curation(plan: CurationPlan) -> list[Place]:
    """The local paths of a curation that workers use."""
    places = [
        Place("curate.pool", plan.pool_root, True),
        Place("curate.shards", plan.shards_root, True),
    ]
    for planned in (plan.source, *plan.stages, plan.shard):
        for option in dataclasses.fields(planned.stage):
            if option.metadata.get("path"):
                value = getattr(planned.stage, option.name)
                paths = value if isinstance(value, list | tuple) else [value]
                places += [
                    Place(f"{planned.name}.{option.name}", path, False)
                    for path in paths
                    if isinstance(path, str)
                ]
    return list(_local(places))


def of_training(settings: TrainSettings) -> list[Place]:
    """The local paths of a training that ranks use."""
    places = [Place("train.out", settings.out, True)]
    places += [Place("train.shards", source.path, False) for source in settings.shards]
    places += [Place("train.sidecar", sidecar.path, False) for sidecar in settings.sidecar]
    return list(_local(places))


def refuse_lost(places: Iterable[Place]) -> None:
    """Raise RecipeError for results that would lie in the folder of a Ray job, which goes with the job."""
    folder = joining.working_folder()
    for place in places:
        if folder and place.is_written and storage.join(place.path, "").startswith(f"{folder}/"):
            relative = os.path.relpath(place.path, folder)
            raise RecipeError(
                f"{place.where} = {relative!r}",
                "in a Ray job a relative path lies in the job's own folder, which is deleted after it",
                f"give an absolute path that all nodes see, e.g. --set {place.where}=/shared/{relative}, or s3://...",
            )


def check(ray: Any, places: Iterable[Place], say: Callable[[str], None]) -> None:
    """Raise RecipeError where a node that would work does not see a place as this machine does."""
    places = [place for place in places if place.is_written or os.path.exists(place.path)]
    nodes = _others(ray)
    if not places or not nodes:
        return
    word = disk.temporary_name("").removeprefix(disk.TEMPORARY)
    marked = [place for place in places if place.is_written]
    try:
        for place in marked:
            _make(place.path, word)
        answers = dict(_asked(ray, nodes, places, word, say))
        complaints = {node: _first(*answer, places, word) for node, answer in answers.items()}
    finally:
        for place in marked:
            for index in range(-1, len(nodes)):
                with suppress(OSError):
                    os.remove(_mark(place.path, word, index))
    bad = {node: told for node, told in complaints.items() if told is not None}
    if bad:
        place, what = next(iter(bad.values()))
        names = ", ".join(node for node, (other, _) in bad.items() if other == place)
        raise RecipeError(f"{place.where} = {place.path!r}", f"{what} on {names}", _SHARED_HINT)


def look(places: list[Place], word: str, index: int) -> list[str]:
    """On a node: what is wrong with each place, '' for nothing; leaves a mark of its own in those that are written."""
    return [_wrong(place, word, index) for place in places]


def _wrong(place: Place, word: str, index: int) -> str:
    if not place.is_written:
        return "" if os.path.exists(place.path) else "there is no such file or folder"
    if not _appears(_mark(place.path, word)):
        return "the folder is another one, or none: a file written by the driver is not there"
    try:
        _make(place.path, word, index)
    except OSError as fault:
        return f"it can't be written ({fault.strerror or fault})"
    return ""


def _first(
    index: int, answer: list[str], places: list[Place], word: str
) -> tuple[Place, str] | None:
    """The first place that a node does not see as we do."""
    for place, what in zip(places, answer, strict=True):
        if what:
            return place, what
        if place.is_written and not _appears(_mark(place.path, word, index)):
            return place, "a file written there does not come back to the driver: another folder"
    return None


def _asked(
    ray: Any,
    nodes: list[dict[str, Any]],
    places: list[Place],
    word: str,
    say: Callable[[str], None],
) -> Iterator[tuple[str, tuple[int, list[str]]]]:
    """(node's name, (its number, its answer)) of every node that answered in time."""
    from_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(look)
    asked = {
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=from_node(node["NodeID"], soft=False)
        ).remote(places, word, index): index
        for index, node in enumerate(nodes)
    }
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    silent = [_name(nodes[asked[reference]]) for reference in late]
    for reference in late:
        ray.cancel(reference, force=True)
    for reference in done:
        try:
            yield _name(nodes[asked[reference]]), (asked[reference], ray.get(reference))
        except ray.exceptions.RayError:  # gone meanwhile: whoever gives it work will find out
            silent.append(_name(nodes[asked[reference]]))
    if silent:
        say(f"note: not asked whether they see this run's folders: {', '.join(silent)} (no answer)")


def _others(ray: Any) -> list[dict[str, Any]]:
    """Living nodes that can work, but for this process's own."""
    ours = ray.get_runtime_context().get_node_id()
    return [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] != ours
        and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def _local(places: Iterable[Place]) -> Iterator[Place]:
    """Local ones; of a pattern the folder above it."""
    for place in places:
        if place.path and not storage.is_url(place.path):
            path = place.path
            while not place.is_written and any(letter in path for letter in "*?["):
                path = os.path.dirname(path)
            yield dataclasses.replace(place, path=path)


def _mark(folder: str, word: str, index: int = -1) -> str:
    """A temporary name, so that one left by a driver that died is swept like any other."""
    return os.path.join(folder, f"seen{index if index >= 0 else ''}{disk.TEMPORARY}{word}")


def _make(folder: str, word: str, index: int = -1) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(_mark(folder, word, index), "xb"):
        pass


def _appears(path: str) -> bool:
    deadline = time.monotonic() + _SETTLE_S
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
