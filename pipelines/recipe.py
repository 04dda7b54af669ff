"""Recipes: strict TOML to frozen dataclasses, with ``extends``, ``--set`` and "did you mean".

A recipe says everything about a run; there is no flag per method. An unknown key is an error
before any work. ``extends = "clip_b32.toml"`` names one parent: tables merge, lists replace.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.contract import storage
from pipelines import components, overrides
from pipelines.components import Component
from pipelines.errors import RecipeError, did_you_mean, split_hint
from pretrain.loop import settings
from pretrain.loop.settings import Phase, ShardSource, Sidecar, TrainSettings

SHIPPED = Path(__file__).resolve().parent / "recipes"

# Which kind of component each list of tables holds.
_COMPONENT_FIELDS = {
    (Phase, "view"): "view",
    (Phase, "tweak"): "tweak",
    (Phase, "objective"): "objective",
}

# Keys of a component's table that are not its options: the weight of a term, the name of a figure.
_BESIDE_OPTIONS: dict[str, tuple[tuple[str, type, Any], ...]] = {
    "objective": (("weight", float, 1.0),),
    "evaluate": (("name", str, ""),),
}


@dataclass(frozen=True, kw_only=True)
class CuratePlan:
    """The ``[curate]`` table."""

    pool: str
    shards: str
    max_error_frac: float = 0.5  # share of a stage's rows that may fail before the run stops
    source: Component
    stage: tuple[Component, ...] = ()
    shard: Component = field(default_factory=lambda: Component("shard.write", {}, "curate.shard"))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe. ``resolved`` is the TOML as data, after ``extends`` and ``--set``."""

    name: str
    paper: str = ""
    seed: int = 0
    curate: CuratePlan | None = None
    train: TrainSettings | None = None
    evaluate: tuple[Component, ...] = ()
    path: str = ""
    resolved: dict[str, Any] = field(default_factory=dict)


def load(name_or_path: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or of a shipped name, with ``key.path=value`` overrides. Raises RecipeError.

    A change takes the place of options that it can't stand beside (``overrides.drop_rivals``).
    """
    path = find(name_or_path)
    data = _read(path, ())
    for change in changes:
        overrides.apply(data, change)
    overrides.drop_rivals(data, changes)
    return from_data(data, str(path))


def find(name_or_path: str) -> Path:
    """The recipe's file: a path as given, or the name of one that comes with clip-pipe."""
    for path in (Path(name_or_path), SHIPPED / name_or_path, SHIPPED / f"{name_or_path}.toml"):
        if path.is_file():
            return path
    shipped = [path.stem for path in SHIPPED.glob("*.toml")]
    raise RecipeError(
        name_or_path,
        "no such recipe file",
        did_you_mean(Path(name_or_path).stem, shipped, "recipes that come with clip-pipe"),
    )


def from_data(data: dict[str, Any], path: str) -> Recipe:
    """A Recipe from plain TOML data; every key is checked. ``path`` is for messages."""
    known = {"name", "paper", "seed", "curate", "train", "evaluate"}
    _refuse_unknown(data, known, path)
    _require(data, ["name"], path)
    if "curate" not in data and "train" not in data:
        raise RecipeError(path, "there is nothing to do", "add a [curate] or a [train] table")
    curate = _curate(data["curate"], path) if "curate" in data else None
    train = (
        _dataclass(TrainSettings, data["train"], f"{path}: train", _train_fields(path))
        if "train" in data
        else None
    )
    evaluate = _components(data.get("evaluate", []), "evaluate", f"{path}: evaluate")
    if train is not None:
        train = _train_paths(train, curate, path)
    for key, kind in (("name", str), ("paper", str), ("seed", int)):
        if key in data:
            components.coerce(data[key], kind, f"{path}: {key}")
    return Recipe(
        name=data["name"], paper=data.get("paper", ""), seed=data.get("seed", 0),
        curate=curate, train=train, evaluate=evaluate, path=path, resolved=data,
    )  # fmt: skip


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML, loadable again."""
    import tomli_w

    return tomli_w.dumps(recipe.resolved)


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The file's data merged over its parents'."""
    if path.resolve() in seen:
        raise RecipeError(str(path), "extends itself", "remove one `extends` of the circle")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as fault:
        raise RecipeError(str(path), f"not valid TOML: {fault}") from fault
    except UnicodeDecodeError as fault:
        raise RecipeError(str(path), f"not UTF-8 text: {fault}") from fault
    parent = data.pop("extends", None)
    if parent is None:
        return data
    components.coerce(parent, str, f"{path}: extends")
    beside = path.parent / parent
    base = _read(beside if beside.is_file() else find(parent), (*seen, path.resolve()))
    return _merged(base, data)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        mine = result.get(key)
        result[key] = (
            _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
        )
    return result


def _folder(value: Any, where: str) -> str:
    """A folder's whole path; an URL that was mistyped would be a local folder, or two names of one place."""
    path = str(components.coerce(value, str, where))
    mistyped = re.match(r"([a-z][a-z0-9]+):/(?!/)", path)
    if mistyped:
        hint = f"{mistyped[1]}:// has two slashes; for a local folder write ./{path}"
        raise RecipeError(where, f"found {path!r}", hint)
    if storage.is_url(path) and "//" in path.partition("://")[2].strip("/"):
        raise RecipeError(where, f"found {path!r}", "write one / where it has //")
    return storage.absolute(path)


def _curate(data: Any, path: str) -> CuratePlan:
    where = f"{path}: curate"
    if not isinstance(data, dict):
        raise RecipeError(where, f"found {data!r}, expected a table")
    _refuse_unknown(data, {item.name for item in dataclasses.fields(CuratePlan)}, where)
    _require(data, ["pool", "shards", "source"], where)
    frac = components.coerce(data.get("max_error_frac", 0.5), float, f"{where}.max_error_frac")
    if not 0 <= frac <= 1:
        raise RecipeError(f"{where}.max_error_frac", f"found {frac}", "a share between 0 and 1")
    shard = data.get("shard", {})
    if not isinstance(shard, dict):
        raise RecipeError(f"{where}.shard", f"found {shard!r}, expected a table")
    shard = {"use": "shard.write", **shard}
    pool, shards = (_folder(data[name], f"{where}.{name}") for name in ("pool", "shards"))
    if f"{shards}/".startswith(f"{pool}/") or f"{pool}/".startswith(f"{shards}/"):
        raise RecipeError(
            where,
            f"pool = {pool!r} and shards = {shards!r} lie in one another",
            "name two folders side by side",
        )
    return CuratePlan(
        pool=pool,
        shards=shards,
        max_error_frac=frac,
        source=_component(data["source"], "source", f"{where}.source"),
        stage=_components(data.get("stage", []), "stage", f"{where}.stage"),
        shard=_component(shard, "shard", f"{where}.shard"),
    )


def _train_fields(path: str) -> dict[str, Any]:
    """How the fields of [train] that are not plain values are read."""

    def shards(value: Any, where: str) -> tuple[ShardSource, ...]:
        entries = value if isinstance(value, list) else [value]
        tables = [{"path": entry} if isinstance(entry, str) else entry for entry in entries]
        for entry in tables:
            if not isinstance(entry, dict):
                hint = "a folder, a glob, or a list of tables with `path` and `weight`"
                raise RecipeError(where, f"found {entry!r}", hint)
        return tuple(
            _dataclass(ShardSource, entry, f"{where}.{n}", {}) for n, entry in enumerate(tables)
        )

    def phases(value: Any, where: str) -> tuple[Phase, ...]:
        readers = {
            name: (lambda v, w, kind=kind: _components(v, kind, w))
            for (_, name), kind in _COMPONENT_FIELDS.items()
        }
        return tuple(
            _dataclass(Phase, entry, f"{where}.{n}", readers)
            for n, entry in enumerate(_list(value, where))
        )

    def sidecars(value: Any, where: str) -> tuple[Sidecar, ...]:
        return tuple(
            _dataclass(Sidecar, entry, f"{where}.{n}", {})
            for n, entry in enumerate(_list(value, where))
        )

    return {"shards": shards, "phase": phases, "sidecar": sidecars}


def _weights(pretrained: str) -> str:
    """A path made absolute; a name that is none is open_clip's tag of weights."""
    path = storage.absolute(pretrained) if pretrained else ""
    is_path = any(mark in pretrained for mark in "/.~") or (path and storage.exists(path))
    return path if is_path else pretrained


def _train_paths(train: TrainSettings, curate: CuratePlan | None, path: str) -> TrainSettings:
    """Paths made absolute; shards default to what the recipe curates."""
    shards = train.shards or ((ShardSource(path=curate.shards),) if curate else ())
    where = f"{path}: train"
    if not shards:
        raise RecipeError(
            where, "no shards", 'add `shards = "folder of tars"`, or a [curate] table'
        )
    if not train.phase:
        raise RecipeError(
            where, "no phase", "add a [[train.phase]] with `samples` and `global_batch`"
        )
    train = dataclasses.replace(
        train,
        out=storage.absolute(train.out),
        pretrained=_weights(train.pretrained),
        cache=storage.absolute(train.cache) if train.cache else "",
        sidecar=tuple(
            dataclasses.replace(entry, path=storage.absolute(entry.path)) for entry in train.sidecar
        ),
        shards=tuple(
            dataclasses.replace(entry, path=storage.absolute(entry.path)) for entry in shards
        ),
    )
    try:
        settings.check(train)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(path, what, hint) from fault
    return train


def _dataclass(cls: Any, data: Any, where: str, readers: dict[str, Any]) -> Any:
    """A frozen dataclass from a table; ``readers`` handle the fields that are tables themselves."""
    if not isinstance(data, dict):
        raise RecipeError(where, f"found {data!r}, expected a table")
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}
    _refuse_unknown(data, known, where)
    _require(
        data, [name for name, item in known.items() if item.default is dataclasses.MISSING], where
    )
    values = {
        key: readers[key](value, f"{where}.{key}")
        if key in readers
        else components.coerce(value, hints[key], f"{where}.{key}")
        for key, value in data.items()
    }
    return cls(**values)


def _components(data: Any, kind: str, where: str) -> tuple[Component, ...]:
    return tuple(
        _component(entry, kind, f"{where}.{n}") for n, entry in enumerate(_list(data, where))
    )


def _component(data: Any, kind: str, where: str) -> Component:
    """One table with ``use``; the component must exist, its options must be its own."""
    if not isinstance(data, dict):
        raise RecipeError(where, f"found {data!r}, expected a table")
    _require(data, ["use"], where)
    use = components.coerce(data["use"], str, f"{where}.use")
    component = Component(use, {key: value for key, value in data.items() if key != "use"}, where)
    checked = dict(component.options)
    for key, value_kind, default in _BESIDE_OPTIONS.get(kind, ()):
        components.coerce(checked.pop(key, default), value_kind, f"{where}.{key}")
    try:
        components.resolve_options(kind, dataclasses.replace(component, options=checked))
    except RecipeError as fault:
        if where in str(fault):
            raise
        raise RecipeError(where, str(fault)) from fault
    return component


def _list(data: Any, where: str) -> list[Any]:
    if not isinstance(data, list):
        name = where.rsplit(".", 1)[-1].split(" ")[-1]
        raise RecipeError(
            where,
            "found one table, expected a list of them",
            f"write [[...{name}]] with double brackets",
        )
    return data


def _refuse_unknown(data: dict[str, Any], known: Any, where: str) -> None:
    for key in data:
        if key not in known:
            raise RecipeError(where, f"unknown key {key!r}", did_you_mean(key, known, "keys here"))


def _require(data: dict[str, Any], names: list[str], where: str) -> None:
    for name in names:
        if name not in data:
            raise RecipeError(where, f"the key {name!r} is missing", f"add `{name} = ...`")
