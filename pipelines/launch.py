"""Starts training and evaluation: in this process, through torchrun, or through Ray Train.

Each rank loads the recipe itself and builds its components; `pretrain` sees built objects only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pipelines import components, events, lease, live, preflight, ranks, recipe, same_files
from pipelines.components import Component
from pipelines.errors import RecipeError, RunFailed, Stopped, split_hint
from pipelines.recipe import Recipe
from pretrain.loop.settings import Phase, TrainSettings

_DEFAULT_VIEWS = (Component("crop"), Component("caption_mix"))
_DEFAULT_OBJECTIVE = (Component("infonce"),)


def train(
    name: str, overrides: Sequence[str], *, nproc: int, ray_workers: int, address: str, resume: bool,
    allow: Sequence[str] = (),
) -> str:  # fmt: skip
    """Run or launch a training; one JSON line from rank 0, "" from others. Raises RecipeError before any work.

    ``allow`` names settings that may differ from those of the checkpoint that is resumed.
    """
    ranks.die_with_parent(os.environ)
    ranks.from_slurm(os.environ)
    launched = "RANK" in os.environ  # we are one of many already: torchrun's, srun's, or by hand
    if launched and ray_workers:
        raise RecipeError("--ray", "this process is a rank of another launcher already (RANK is set)",
                          "start it once, from outside of torchrun and srun")  # fmt: skip
    loaded = recipe.load(name, overrides)
    rank = int(os.environ.get("RANK", "0"))
    ours = nproc == 1 or bool(ray_workers)  # else the first rank that is started here tells
    settings = preflight.checked(loaded, resume, tell=rank == 0 if launched else ours)
    world = ray_workers or (int(os.environ.get("WORLD_SIZE", "1")) if launched else nproc)
    preflight.check_ranks(settings, world)
    same_files.refuse_lost(same_files.of_training(settings))
    if ray_workers:
        from pipelines import run_ray

        with live.following(settings):
            result = run_ray.train(loaded, ray_workers, address, allow)
    elif nproc > 1 and not launched:
        with live.following(settings):
            return ranks.torchrun(ranks.arguments(name, overrides, resume, allow), nproc)
    else:
        result = run_rank(loaded, resume=resume, allow=allow)
    if int(os.environ.get("RANK", "0")) != 0:
        return ""
    from pipelines.report import written

    page = written.training(settings.out, loaded.name)
    return json.dumps({"recipe": loaded.name, **result, "report": page}, ensure_ascii=False)


def built(settings: TrainSettings, seed: int) -> TrainSettings:
    """The settings with every view, tweak and term made; heavy imports happen here."""

    def phase(entry: Phase) -> Phase:
        return dataclasses.replace(
            entry,
            view=tuple(components.build("view", use, seed) for use in entry.view or _DEFAULT_VIEWS),
            tweak=tuple(components.build("tweak", use, seed) for use in entry.tweak),
            objective=tuple(_weighted(use, seed) for use in entry.objective or _DEFAULT_OBJECTIVE),
        )

    return dataclasses.replace(settings, phase=tuple(phase(entry) for entry in settings.phase))


def run_rank(
    loaded: Recipe,
    *,
    resume: bool,
    progress: Callable[[dict[str, Any]], None] | None = None,
    stop_asked: Callable[[], bool] | None = None,
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """Train in this process, as one rank of torchrun's or Ray's, or alone. Raises RunFailed, Stopped."""
    from pretrain.loop import away
    from pretrain.loop import train as loop

    assert loaded.train is not None
    data_hash = fingerprint([preflight.data_hash_of(source.path) for source in loaded.train.shards])
    try:
        with _logged(loaded), live.shown(loaded.train) as show:
            result = loop.run(
                built(loaded.train, loaded.seed),
                seed=loaded.seed,
                data_hash=data_hash,
                recipe_text=recipe.to_toml(loaded),
                resume=resume,
                progress=progress or show,
                stop_asked=stop_asked,
                allow_changes=allow,
                alone=alone,
            )
    except (loop.TrainingStopped, away.FolderLost) as fault:
        raise RunFailed(str(fault)) from fault
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("train", what, hint) from fault
    if result.interrupted:
        raise Stopped(result.signal_number or signal.SIGTERM)
    return {
        "checkpoint": str(result.checkpoint),
        "samples_seen": result.samples_seen,
        "metrics": str(result.metrics),
    }


@contextmanager
def alone(out: str) -> Iterator[Callable[[], None]]:
    """Hold a train folder behind a URL, by a lease as a pool's; gives what raises FolderLost once it is gone.

    Raises ValueError where somebody else trains there, in the words of a folder on disk.
    """
    from pretrain.loop import lock  # with torch
    from pretrain.loop.away import FolderLost

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    def still() -> None:
        try:
            one.check()
        except RunFailed as fault:
            raise FolderLost(str(fault).replace("\nhint:", ". hint:")) from fault

    one = lease.Lease(out, dict)
    try:
        one.take(say)
    except RunFailed as fault:
        told = lease.read(out) or {}
        since = (
            f", since {told['began']}, last beat {told.get('beat', '?')}" if "began" in told else ""
        )
        holder = f"process {told.get('pid', '?')} on {told.get('host', '?')}{since}"
        raise ValueError(lock.refusal(out, holder)) from fault
    try:
        yield still
    finally:
        one.release()


def _logged(loaded: Recipe) -> AbstractContextManager[Any]:
    """The first rank's log, in the run's folder."""
    if int(os.environ.get("RANK", "0")) != 0:
        return nullcontext()
    assert loaded.train is not None
    return events.logged(loaded.train.out, "train", at_once=True, recipe=loaded.name)


def newest_checkpoint(loaded: Recipe) -> str:
    """The newest whole checkpoint of a recipe's run. Raises RecipeError where there is none."""
    from pretrain.loop import checkpoint

    assert loaded.train is not None
    try:
        found = checkpoint.newest(loaded.train.out)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError(f"train.out = {loaded.train.out!r}", what, hint) from fault
    if found is None:
        raise RecipeError(
            f"train.out = {loaded.train.out!r}",
            "no checkpoint there",
            "run `clip-pipe train` first, or give --checkpoint PATH",
        )
    return str(found)


def evaluate(loaded: Recipe, checkpoint_path: str, *, as_json: bool, ema: bool = False) -> str:
    """Run the recipe's evaluations on one checkpoint; figures go to the run's metrics too.

    ``ema``: on the averaged weights that lie in it.
    """
    if not loaded.evaluate:
        raise RecipeError(
            loaded.path, "no [[evaluate]] table", 'add one with `use = "zero_shot"` and a path'
        )
    if loaded.train is None:
        raise RecipeError(loaded.path, "no [train] table, so the model is unknown")
    path = checkpoint_path or newest_checkpoint(loaded)
    if not storage.exists(path):
        raise RecipeError(f"--checkpoint {path}", "no such file")
    from pretrain.evaluate import table

    figures = run_evaluations(loaded, path, ema=ema)
    if as_json:
        told = {name: table.finite(one) for name, one in figures.items()}
        return json.dumps({"checkpoint": path, "figures": told}, indent=2, allow_nan=False)
    return table.render(figures)


def run_evaluations(
    loaded: Recipe, checkpoint_path: str, *, ema: bool = False
) -> dict[str, dict[str, float]]:
    """Figures by evaluation name; each name is its ``set``'s or its path's, made unique."""
    from pretrain.evaluate import run
    from pretrain.loop import log
    from pretrain.model import encoder

    assert loaded.train is not None
    named: list[tuple[str, Any]] = []
    told: dict[str, dict[str, float]] = {}
    for component in loaded.evaluate:
        options = dict(component.options)
        name = str(
            options.pop("name", "")
            or f"{component.use}.{Path(str(options.get('path', ''))).name.split('.')[0]}"
        )
        made = components.build(
            "evaluate", dataclasses.replace(component, options=options), loaded.seed
        )
        named.append((name, made))
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = encoder.load(checkpoint_path)
        if ema:
            model.load_weights(_averaged(checkpoint_path))
        model = model.to(device).eval()
        # Another run's checkpoint is judged, but its figures are none of this run's.
        metrics = storage.join(loaded.train.out, "metrics.jsonl")
        folder = storage.join(loaded.train.out, "checkpoints", "")
        own = storage.absolute(checkpoint_path).startswith(folder) and storage.exists(metrics)
        seen = re.search(r"samples-(\d+)\.pt$", checkpoint_path)
        context = {
            "checkpoint": Path(checkpoint_path).name,
            "samples_seen": int(seen[1]) if seen else 0,
            **({"ema": True} if ema else {}),
        }
        try:
            path = metrics if own else None
            return run.run(model, named, device, path, context, heard=told.__setitem__)
        finally:  # also where a later one can't be made
            if own and seen:
                log.evaluated(
                    loaded.train.out, loaded.train.loggers, int(seen[1]), told, ema=ema, alone=alone
                )
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("evaluate", what, hint) from fault


def _averaged(checkpoint_path: str) -> dict[str, Any]:
    """All weights of a checkpoint, averaged where an average is kept. Raises ValueError if none is."""
    from pretrain.loop import checkpoint

    saved = checkpoint.read(checkpoint_path)
    if not saved.get("ema"):
        raise ValueError(
            f"{checkpoint_path} holds no averaged weights. hint: train with train.ema_decay, or leave --ema out"
        )
    return {**saved["state_dict"], **saved["ema"]}


def _weighted(component: Component, seed: int) -> tuple[float, Any]:
    options = dict(component.options)
    weight = float(options.pop("weight", 1.0))
    return weight, components.build(
        "objective", dataclasses.replace(component, options=options), seed
    )
