"""What can be known of [train] and [[evaluate]] before any work: model, shards, folders; no torch is imported."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pipelines.errors import RecipeError, did_you_mean, split_hint
from pipelines.recipe import Recipe
from pretrain.loop.settings import TrainSettings

_PRETRAIN = Path(__file__).resolve().parent.parent / "pretrain"


def checked(loaded: Recipe, resume: bool) -> TrainSettings:
    """The recipe's train settings, after the checks that need no torch. Raises RecipeError."""
    if loaded.train is None:
        raise RecipeError(
            loaded.path, "no [train] table", "this recipe only curates: use `clip-pipe curate`"
        )
    for source in loaded.train.shards:
        data_hash_of(source.path)
    if loaded.train.pretrained and not storage.exists(loaded.train.pretrained):
        raise RecipeError(
            f"train.pretrained = {loaded.train.pretrained!r}", "no such file",
            "the path of weights saved by open_clip or by clip-pipe",
        )  # fmt: skip
    _check_model(loaded.train.model)
    _tell_other_shards(loaded)
    started = storage.exists(storage.join(loaded.train.out, "metrics.jsonl"))
    if started and not resume:
        raise RecipeError(
            f"train.out = {loaded.train.out!r}",
            "the folder holds a run already",
            "add --resume to go on with it, or name another folder",
        )
    try:
        storage.prepare(loaded.train.out)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("train.out", what, hint) from fault
    return loaded.train


def check_training(loaded: Recipe) -> None:
    """What can be known of [train] and [[evaluate]] before any work, without torch. Raises RecipeError."""
    assert loaded.train is not None
    _check_model(loaded.train.model)
    curated = loaded.curate.shards if loaded.curate else None
    for source in loaded.train.shards:
        if source.path != curated:  # those of the recipe itself may not be there yet
            data_hash_of(source.path)
    for component in loaded.evaluate:
        if "." in component.use:
            continue  # code from elsewhere knows its own options
        path = storage.absolute(str(component.options.get("path", "")))
        own = curated is not None and path.startswith(curated)
        if (
            not own
            and not storage.is_url(path)
            and not re.search(r"[*{]", path)
            and not storage.exists(path)
        ):
            raise RecipeError(f"{component.where}.path", f"{path}: no such file or folder")
        chosen = str(component.options.get("set", ""))
        known = [entry.stem for entry in (_PRETRAIN / "evaluate" / "sets").glob("*.toml")]
        if chosen and not chosen.endswith(".toml") and chosen not in known:
            raise RecipeError(
                f"{component.where}.set", f"no set {chosen!r}", did_you_mean(chosen, known, "sets")
            )


def _check_model(name: str) -> None:
    """A model must be one of ours, one of open_clip's (where that is installed), or a .json of its own."""
    if name.endswith(".json"):
        if not storage.exists(storage.absolute(name)):
            raise RecipeError("train.model", f"{name}: no such file")
        return
    found = importlib.util.find_spec("open_clip")
    folders = [_PRETRAIN / "model" / "configs"]
    folders += [Path(found.origin).parent / "model_configs"] if found and found.origin else []
    known = [path.stem for folder in folders for path in folder.glob("*.json")]
    if found and "/" not in name and name not in known:
        raise RecipeError("train.model", f"no model {name!r}", did_you_mean(name, known, "models"))


def _tell_other_shards(loaded: Recipe) -> None:
    """A note where the shards to train on were made by another version of this recipe's [curate]."""
    from pipelines.plan import plan_curation
    from pipelines.sharding import manifest_of

    assert loaded.train is not None
    if loaded.curate is None or loaded.curate.shards not in [s.path for s in loaded.train.shards]:
        return
    try:
        wanted = plan_curation(loaded).shard.fingerprint
        found = manifest_of(loaded.curate.shards)
    except RecipeError:
        return  # the source need not be where training runs
    if found is not None and found.get("fingerprint") != wanted:
        print(
            f"note: {loaded.curate.shards} holds shards of another version of this recipe's [curate]; training on them. "
            "hint: run `clip-pipe curate` first if that is not meant",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def data_hash_of(path: str) -> str:
    """What a checkpoint says it was trained on: the shards' fingerprint, or a hash of tar names and sizes."""
    from curate.contract import shards

    manifest = storage.join(path, "manifest.json")
    try:
        found = shards.list_tars(path)
        if storage.exists(manifest):
            return json.loads(storage.read_text(manifest))["fingerprint"]
        return fingerprint([(name.rsplit("/", 1)[-1], storage.size_bytes(name)) for name in found])
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("train.shards", what, hint) from fault
