"""A small curation that ended, for tests that look at what it left: pool, shards, log. A copy for each test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tomli_w

from pipelines import commands, recipe
from tests.tiny.stages import USE

SOURCE = {
    "use": f"{USE}:Numbers",
    "count": 47,
    "rows_per_part": 8,
    "bad_every": 7,
    "repeat_every": 5,
}
STAGES: list[dict[str, Any]] = [
    {"use": f"{USE}:Length"},
    {"use": f"{USE}:Common", "most": 10},
    {"use": f"{USE}:Picture", "dead": "number 11"},
    {"use": f"{USE}:PictureSize"},
]


def write(
    folder: Path, stages: list[dict[str, Any]] = STAGES, name: str = "whole", **curate: Any
) -> str:
    """The path of a recipe over FOLDER/pool and FOLDER/shards."""
    table = {"pool": str(folder / "pool"), "shards": str(folder / "shards"), "source": SOURCE,
             "stage": stages, "shard": {"samples_per_shard": 5}, **curate}  # fmt: skip
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({"name": name, "curate": table}))
    return str(path)


def run(path: str) -> str:
    """Curate in this process; the command's line of JSON."""
    return commands.curate(path, (), local=True, address="", workers=0)


def make(folder: Path, **more: Any) -> recipe.Recipe:
    """A run that ended, and its recipe."""
    path = write(folder, **more)
    run(path)
    return recipe.load(path, ())


def copied(made: Path, folder: Path) -> Path:
    """Everything that a run left, to be damaged."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    for path in (folder / "pool" / "recipe.toml", *folder.glob("*.toml")):
        path.write_text(path.read_text().replace(str(made), str(folder)))
    return folder
