"""What can be known of [train] and [[evaluate]] before any work: model, shards, folders; no torch is imported."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pipelines.errors import RecipeError, did_you_mean, split_hint
from pipelines.recipe import Recipe
from pretrain.loop import log, settings
from pretrain.loop.settings import TrainSettings

_CONTEXT_LENGTH = 77  # open_clip's where a configuration has none
_PRETRAIN = Path(__file__).resolve().parent.parent / "pretrain"


def checked(loaded: Recipe, resume: bool, *, tell: bool = True) -> TrainSettings:
    """The recipe's train settings, after the checks that need no torch. Raises RecipeError.

    ``tell``: print what is legal and hardly meant, too; of many processes of one run one does.
    """
    if loaded.train is None:
        raise RecipeError(
            loaded.path, "no [train] table", "this recipe only curates: use `clip-pipe curate`"
        )
    for source in loaded.train.shards:
        _check_shards(loaded, source.path)
    _check_model(loaded.train.model)
    _check_pretrained(loaded.train)
    check_buckets(loaded.train)
    _check_loggers(loaded.train)
    if tell:
        tell_doubts(loaded.train)
        _tell_other_shards(loaded)
    try:
        storage.prepare(loaded.train.out)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("train.out", what, hint) from fault
    begun = [storage.join(loaded.train.out, name) for name in ("metrics.jsonl", "checkpoints")]
    if any(storage.exists(path) for path in begun) and not resume:
        raise RecipeError(
            f"train.out = {loaded.train.out!r}",
            "the folder holds a run already",
            "add --resume to go on with it, or name another folder",
        )
    if resume and tell and not storage.exists(begun[1]):
        print(
            f"note: --resume, and {loaded.train.out} holds no checkpoint: the run begins at its first sample",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return loaded.train


def _check_shards(loaded: Recipe, path: str) -> None:
    """They must be there; those of the recipe itself are made by another command."""
    try:
        data_hash_of(path)
    except RecipeError as fault:
        own = loaded.curate is not None and path == loaded.curate.shards
        if not own or storage.exists(path):
            raise
        raise RecipeError(
            "train.shards", f"{path}: not there yet", f"run `clip-pipe curate {loaded.path}` first"
        ) from fault


def check_ranks(train: TrainSettings, ranks: int) -> None:
    """Batches must divide over the ranks. Raises RecipeError with the nearest sizes that do."""
    try:
        settings.check_batches(train, ranks)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        where, _, rest = what.partition(" = ")
        raise RecipeError(where, rest, hint) from fault


def check_training(loaded: Recipe) -> None:
    """What can be known of [train] and [[evaluate]] before any work, without torch. Raises RecipeError."""
    assert loaded.train is not None
    _check_model(loaded.train.model)
    _check_pretrained(loaded.train)
    check_buckets(loaded.train)
    tell_doubts(loaded.train)
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


def check_buckets(train: TrainSettings) -> None:
    """Text buckets must be lengths that the model can read, where its configuration is here. Raises RecipeError."""
    from pipelines.training_plan import config_of

    text = (config_of(train.model) or {}).get("text_cfg")
    if not isinstance(text, dict):
        return  # the model will say itself what it reads
    try:
        settings.check_buckets(train, int(text.get("context_length", _CONTEXT_LENGTH)))
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        where, _, rest = what.partition(" = ")
        raise RecipeError(where, rest, hint) from fault


def tell_doubts(train: TrainSettings) -> None:
    """A warning on stderr for everything that is legal and hardly meant."""
    for doubt in settings.doubts(train):
        print(f"warning: {doubt}", file=sys.stderr, flush=True)


def _check_loggers(train: TrainSettings) -> None:
    """What else the figures go to must be installed here, where the run begins."""
    try:
        log.check(train.loggers, train.out)
    except ValueError as fault:
        what, hint = split_hint(str(fault).removeprefix("train.loggers: "))
        raise RecipeError("train.loggers", what, hint) from fault


def _check_pretrained(train: TrainSettings) -> None:
    """Weights to start from are a file, or one of open_clip's tags for the model; nothing is downloaded."""
    name = train.pretrained
    if not name or storage.exists(name):
        return
    where = f"train.pretrained = {name!r}"
    if re.search(r"[/.]", name):
        raise RecipeError(
            where, "no such file", "the path of weights saved by open_clip or by clip-pipe"
        )
    known = pretrained_tags(train.model)
    if known is not None and name.lower().replace("-", "_") not in known:
        hint = did_you_mean(name, known, "tags") if known else "open_clip has no weights for it"
        raise RecipeError(where, f"no such file, and no tag of {train.model}", hint)


def pretrained_tags(model: str) -> list[str] | None:
    """open_clip's tags of weights for a model, read from its source text; None where it is not installed.

    To import open_clip is to import torch, which takes seconds.
    """
    found = importlib.util.find_spec("open_clip")
    path = Path(found.origin).parent / "pretrained.py" if found and found.origin else None
    if path is None or not path.is_file():
        return None
    named: dict[str, ast.expr] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            named[node.targets[0].id] = node.value
    table = named.get("_PRETRAINED")
    if not isinstance(table, ast.Dict):
        return (
            None  # another release keeps them elsewhere: it will say itself what it does not know
        )
    plain = model.removesuffix("-quickgelu")
    for key, value in zip(table.keys, table.values, strict=True):
        if isinstance(key, ast.Constant) and key.value in (model, plain):
            tags = named.get(value.id) if isinstance(value, ast.Name) else value
            calls = tags.keywords if isinstance(tags, ast.Call) else []
            quick = [tag for tag in calls if "quick_gelu=True" in ast.unparse(tag.value)]
            return [str(tag.arg) for tag in (calls if key.value == model else quick)]
    return []


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
