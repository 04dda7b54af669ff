"""What a stage reads, who above it provides that, and what its values and its place hang on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa

from curate.contract import storage
from curate.contract.columns import COLUMNS
from curate.stage import VIRTUAL_COLUMNS, GlobalStage, Stage
from pipelines import components
from pipelines.components import Component
from pipelines.errors import RecipeError, did_you_mean, split_hint

if TYPE_CHECKING:
    from pipelines.plan import Planned

_EDGE_BYTES = 64 << 10
_READ_AWAY_BYTES = 1 << 20  # of a remote file that has a version; a smaller one is read and hashed


def columns_read(
    stage: Stage, kind: str, component: Component, above: tuple[Planned, ...]
) -> tuple[str, ...]:
    """The columns a stage names, each provided by something above. Raises RecipeError."""
    if kind == "source":
        return ()
    has_images = any(planned.makes_images for planned in above)
    provided = {"uid", "url", "caption", *VIRTUAL_COLUMNS} | {
        name for planned in above for name in planned.columns
    }
    if not has_images:
        provided.discard("image")
    reads = tuple(provided - {"part", "row"}) if kind == "shard" else stage.reads()
    for name in reads:
        if name not in provided:
            maker = f"{_maker(name)} " if _maker(name) else ""
            raise RecipeError(
                component.where,
                f"{component.use} reads the column {name!r}, which nothing above it provides",
                f"put {maker}above it" if maker else did_you_mean(name, provided, "columns here"),
            )
    return tuple(sorted(reads))


def _maker(column: str) -> str:
    """A component of the project that writes ``column`` with default options, or ''."""
    for use in components.found("stage"):
        description = components.describe("stage", use)
        if any(option.default is components.REQUIRED for option in description.options):
            options = {o.name: "" for o in description.options if o.default is components.REQUIRED}
        else:
            options = {}
        try:
            made = components.load("stage", use)(**options)
            names = made.writes().names
        except (ValueError, TypeError, OSError):
            continue
        if column in names:
            return use
    return ""


def stands_on(
    reads: tuple[str, ...], above: tuple[Planned, ...], everything: bool
) -> tuple[int, ...]:
    """Indexes of the deciders above and of the providers of ``reads``, with what those stand on."""
    chosen: set[int] = set()
    for position, planned in enumerate(above):
        provides = set(planned.columns) & set(reads) or (planned.makes_images and "image" in reads)
        if everything or planned.decides or provides:
            chosen.add(position - 1)
            chosen.update(planned.upstream)
    return tuple(sorted(chosen))


def measures(reads: tuple[str, ...], above: tuple[Planned, ...]) -> tuple[str, ...]:
    """What the values of the columns that a stage reads hang on, provider by provider."""
    found = [planned for planned in above[1:] if set(planned.columns) & set(reads)]
    makers = [planned for planned in above if planned.makes_images]
    if "image" in reads and makers:
        found.append(makers[-1])
    return tuple(
        planned.fingerprint if isinstance(planned.stage, GlobalStage) else planned.measure
        for planned in [*above[:1], *found]
    )


def check_writes(component: Component, names: list[str], above: tuple[Planned, ...]) -> None:
    """Raise RecipeError where a stage writes a column that is there already."""
    for planned in above:
        for name in set(names) & {"uid", "url", "caption", *planned.columns}:
            raise RecipeError(
                component.where,
                f"{component.use} writes the column {name!r}, which is there already (from {planned.use})",
                "no stage overwrites a column; remove one of the two",
            )


def check_types(
    component: Component, stage: Stage, reads: tuple[str, ...], above: tuple[Planned, ...]
) -> None:
    """Let the stage judge the types of the columns it reads. Raises RecipeError."""
    types = {
        f.name: f.type for planned in above for f in planned.schema if f.name in planned.columns
    }
    types |= {name: COLUMNS[name].type for name in ("uid", "url", "caption", "image")}
    types |= {"part": pa.int64(), "row": pa.int64()}
    try:
        stage.check_columns({name: types[name] for name in reads})
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(component.where, what, hint) from fault


def identity(path: str, whole_bytes: int, mark: tuple[int, str] | None = None) -> str:
    """sha256 of a file; of its size, time of change and two ends where it is over ``whole_bytes``.

    ``mark``: its size and version as a listing of a server told them. Then a file over 1 MB is known by
    these, and not read: a thousand files of a source are known without a request for any.
    """
    digest = hashlib.sha256()
    if mark is not None and mark[0] > _READ_AWAY_BYTES and mark[1] and storage.is_url(path):
        digest.update(f"{mark[0]} {mark[1]}".encode())
        return digest.hexdigest()
    try:
        size = storage.size_bytes(path)
        with storage.open_file(path) as file:
            if size <= whole_bytes:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            else:
                digest.update(f"{size} {storage.modified(path)}".encode())
                digest.update(file.read(_EDGE_BYTES))
                file.seek(size - _EDGE_BYTES)
                digest.update(file.read(_EDGE_BYTES))
    except FileNotFoundError as fault:
        raise ValueError(
            f"{path}: no such file. hint: check the path; a relative one is taken from the folder you run in"
        ) from fault
    return digest.hexdigest()
