"""Starts training and evaluation: in this process, through torchrun, or through Ray Train.

Each rank loads the recipe itself and builds its components; `pretrain` sees built objects only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from curate.contract import storage
from curate.contract.manifest import fingerprint
from pipelines import components, preflight, recipe
from pipelines.components import Component
from pipelines.errors import RecipeError, RunFailed, Stopped, split_hint
from pipelines.recipe import Recipe
from pretrain.loop.settings import Phase, TrainSettings

_DEFAULT_VIEWS = (Component("crop"), Component("caption_mix"))
_DEFAULT_OBJECTIVE = (Component("infonce"),)
_CLI = Path(__file__).resolve().parent.parent / "cli.py"


def train(
    name: str, overrides: Sequence[str], *, nproc: int, ray_workers: int, address: str, resume: bool
) -> str:
    """Run or launch a training; one JSON line from rank 0. Raises RecipeError before any work."""
    loaded = recipe.load(name, overrides)
    settings = preflight.checked(loaded, resume)
    world = ray_workers or nproc
    for number, phase in enumerate(settings.phase):
        if phase.global_batch % world:
            raise RecipeError(
                f"train.phase.{number}.global_batch", f"{phase.global_batch} does not divide by {world} ranks",
                "every rank must have the same number of samples",
            )  # fmt: skip
    if ray_workers:
        from pipelines import run_ray

        result = run_ray.train(loaded, ray_workers, address)
    elif nproc > 1 and "RANK" not in os.environ:
        return _torchrun(name, overrides, nproc, resume)
    else:
        result = run_rank(loaded, resume=resume)
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
) -> dict[str, Any]:
    """Train in this process, as one rank of torchrun's or Ray's, or alone. Raises RunFailed, Stopped."""
    from pretrain.loop import train as loop

    assert loaded.train is not None
    data_hash = fingerprint([preflight.data_hash_of(source.path) for source in loaded.train.shards])
    try:
        result = loop.run(
            built(loaded.train, loaded.seed),
            seed=loaded.seed,
            data_hash=data_hash,
            recipe_text=recipe.to_toml(loaded),
            resume=resume,
            progress=progress or _say,
            stop_asked=stop_asked,
        )
    except loop.TrainingStopped as fault:
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


def newest_checkpoint(loaded: Recipe) -> str:
    """The newest whole checkpoint of a recipe's run. Raises RecipeError where there is none."""
    from pretrain.loop import checkpoint

    assert loaded.train is not None
    found = checkpoint.newest(loaded.train.out)
    if found is None:
        raise RecipeError(
            f"train.out = {loaded.train.out!r}",
            "no checkpoint there",
            "run `clip-pipe train` first, or give --checkpoint PATH",
        )
    return str(found)


def evaluate(loaded: Recipe, checkpoint_path: str, *, as_json: bool) -> str:
    """Run the recipe's evaluations on one checkpoint; figures go to the run's metrics too."""
    if not loaded.evaluate:
        raise RecipeError(
            loaded.path, "no [[evaluate]] table", 'add one with `use = "zero_shot"` and a path'
        )
    if loaded.train is None:
        raise RecipeError(loaded.path, "no [train] table, so the model is unknown")
    path = checkpoint_path or newest_checkpoint(loaded)
    if not storage.exists(path):
        raise RecipeError(f"--checkpoint {path}", "no such file")
    figures = run_evaluations(loaded, path)
    if as_json:
        return json.dumps({"checkpoint": path, "figures": figures}, indent=2)
    from pretrain.evaluate import table

    return table.render(figures)


def run_evaluations(loaded: Recipe, checkpoint_path: str) -> dict[str, dict[str, float]]:
    """Figures by evaluation name; each name is its ``set``'s or its path's, made unique."""
    from pretrain.evaluate import run
    from pretrain.model import encoder

    assert loaded.train is not None
    named: list[tuple[str, Any]] = []
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
        model = encoder.load(checkpoint_path).to(device).eval()
        # Another run's checkpoint is judged, but its figures are none of this run's.
        metrics = storage.join(loaded.train.out, "metrics.jsonl")
        folder = storage.join(loaded.train.out, "checkpoints", "")
        own = storage.absolute(checkpoint_path).startswith(folder) and storage.exists(metrics)
        seen = re.search(r"samples-(\d+)\.pt$", checkpoint_path)
        context = {
            "checkpoint": Path(checkpoint_path).name,
            "samples_seen": int(seen[1]) if seen else 0,
        }
        return run.run(model, named, device, metrics if own else None, context)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("evaluate", what, hint) from fault


def _weighted(component: Component, seed: int) -> tuple[float, Any]:
    options = dict(component.options)
    weight = float(options.pop("weight", 1.0))
    return weight, components.build(
        "objective", dataclasses.replace(component, options=options), seed
    )


def _torchrun(name: str, overrides: Sequence[str], nproc: int, resume: bool) -> str:
    """One process per rank by torchrun on this machine; its signals are ours."""
    arguments = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "1",
        "--nproc-per-node",
        str(nproc),
    ]
    arguments += [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "--local-addr",
        "127.0.0.1",
    ]
    arguments += [
        str(_CLI),
        "train",
        name,
        *(part for override in overrides for part in ("--set", override)),
    ]
    arguments += ["--resume"] if resume else []
    threads = max(1, (os.cpu_count() or 1) // nproc)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    # A session of its own: Ctrl-C reaches us alone, and we pass it on once, as SIGTERM.
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pump = _Pump(process.stderr)
    try:
        out = process.stdout.read() if process.stdout else ""
        process.wait()
    except Stopped as stop:
        pump.quiet = True  # torchrun's tracebacks about the signal that it was sent
        process.terminate()
        process.wait()
        raise stop
    finally:
        pump.join()
    if process.returncode:
        raise RunFailed(
            f"torchrun ended with code {process.returncode}; the ranks' messages are above\nhint: --resume goes on from the last checkpoint"
        )
    return out.strip()


class _Pump(threading.Thread):
    """Passes a process's stderr on as it comes, until told to be quiet."""

    def __init__(self, stream: IO[str] | None) -> None:
        super().__init__(daemon=True)
        self.stream, self.quiet = stream, False
        self.start()

    def run(self) -> None:
        for line in self.stream or ():
            if not self.quiet:
                sys.stderr.write(line)
                sys.stderr.flush()


def _say(line: dict[str, Any]) -> None:
    """One line of metrics for a person, on stderr."""
    shown = " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in line.items()
    )
    print(shown, file=sys.stderr, flush=True)
