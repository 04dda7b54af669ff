"""`clip-pipe demo`: a rendered world curated, a tiny model trained twice, both evaluated, one report.

The raw and the curated run see the same world, the same model and the same number of samples; they
differ in the rows alone. Figures are printed as they come; with several seeds, with their spread.
"""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from curate.contract import storage
from pipelines import curation, launch, progress, recipe
from pipelines.demo import held_out, score, server, told, world
from pipelines.errors import RecipeError, split_hint
from pipelines.plan import plan_curation
from pipelines.recipe import Recipe

RUNS = ("raw", "curated")
_USUAL_PORT = 28_917  # so that a seed gives the same world, uids and draws everywhere
_REWRITER = "caption.llm_rewrite"


@dataclass
class _Demo:
    """Where the demo stands, and what it has found out."""

    out: str
    rows: int
    samples: int
    seed: int
    seeds: int
    shown: progress.Progress
    base_url: str = ""
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[score.FaultScore] = field(default_factory=list)
    figures: dict[str, list[dict[str, dict[str, float]]]] = field(default_factory=dict)

    @property
    def world_folder(self) -> str:
        return storage.join(self.out, "world")

    def recipe_of(self, run: str, seed_number: int = 0) -> Recipe:
        """The shipped recipe of a run with this demo's folders, endpoint, seed and samples."""
        seed = self.seed + seed_number
        train_out = storage.join(
            self.out, run, "train" if seed_number == 0 else f"train-seed{seed}"
        )
        values: dict[str, Any] = {
            "seed": seed,
            "curate.pool": storage.join(self.out, "pool"),
            "curate.shards": storage.join(self.out, run, "shards"),
            "curate.source.path": storage.join(self.world_folder, "source.parquet"),
            "train.out": train_out,
            "evaluate.0.path": storage.join(self.world_folder, "zero_shot"),
            "evaluate.1.path": storage.join(self.world_folder, "zero_shot_attack"),
            "evaluate.2.path": storage.join(self.world_folder, "retrieval.tar"),
        }
        if self.samples:
            values["train.phase.0.samples"] = self.samples
            values["train.phase.0.warmup_samples"] = self.samples // 10
        if run == "curated":
            for number, stage in enumerate(recipe.load("demo_curated").resolved["curate"]["stage"]):
                if stage["use"] == "score.metadata_match":
                    values[f"curate.stage.{number}.entries"] = storage.join(
                        self.world_folder, "entries.txt"
                    )
                if stage["use"] == _REWRITER:
                    values[f"curate.stage.{number}.endpoint"] = f"{self.base_url}/v1"
        return recipe.load(
            f"demo_{run}", [f"{key}={json.dumps(value)}" for key, value in values.items()]
        )


def demo(out: str, *, rows: int = 0, samples: int = 0, seed: int = 0, seeds: int = 1) -> None:
    """Run the whole demo under ``out``; what is there already is not made again. Prints to stdout."""
    started = time.monotonic()
    shown = progress.for_stream()
    state = _Demo(storage.absolute(out), rows or world.DEFAULT_ROWS, samples, seed, seeds, shown)
    try:
        _curate_both(state)
        for run in RUNS:
            state.figures[run] = [
                _train_and_evaluate(state, run, number) for number in range(seeds)
            ]
        page = _write_report(state)
    finally:
        shown.close()
    train = state.recipe_of("raw").train
    assert train is not None
    samples_each = sum(phase.samples for phase in train.phase)
    print(told.text(state.manifests, state.faults, state.figures, samples_each))
    print(f"\nreport: {page}\n({time.monotonic() - started:.0f} s)")


def _curate_both(state: _Demo) -> None:
    """Build and serve the world, and curate it with both recipes on one Ray."""
    from pipelines import run_ray

    state.shown.say(
        f"building a world of {state.rows} rows (seed {state.seed}) in {state.world_folder}"
    )
    try:
        made = world.build(state.seed, state.rows)
    except ValueError as fault:
        what, hint = split_hint(str(fault))
        raise RecipeError("demo", what, hint) from fault
    with ExitStack() as stack:
        state.base_url = stack.enter_context(server.serve(made, _port(state)))
        _write_world(state, made)
        state.shown.say(f"pictures and the paraphrase endpoint are served on {state.base_url}")
        plans = {run: plan_curation(state.recipe_of(run)) for run in RUNS}
        runner = stack.enter_context(run_ray.connected())
        for run, plan in plans.items():
            state.shown.say(f"curating: {run}")
            state.manifests[run] = curation.run(plan, runner, state.shown).manifest
    stages = [planned.name for planned in plans["curated"].stages]
    ledger = storage.join(plans["curated"].shards_root, "ledger.parquet")
    state.faults = score.score(ledger, storage.join(state.world_folder, "truth.parquet"), stages)


def _port(state: _Demo) -> int:
    """The port of the folder's first run, else the usual one: a uid holds its URL and so the port."""
    path = storage.join(state.world_folder, "world.json")
    if not storage.exists(path):
        return _USUAL_PORT if _is_free(_USUAL_PORT) else 0
    found = json.loads(storage.read_text(path))
    if (found["rows"], found["seed"]) != (state.rows, state.seed):
        raise RecipeError(
            f"--out {state.out}",
            f"the folder holds a demo of {found['rows']} rows with seed {found['seed']}",
            "name another folder, or delete that one",
        )
    port = int(found["port"])
    if not _is_free(port):
        raise RecipeError(
            f"--out {state.out}",
            f"port {port}, which the folder's URLs name, is taken on 127.0.0.1",
            "end what listens there, or name another folder",
        )
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_world(state: _Demo, made: world.World) -> None:
    """Source table, truth and evaluation sets; the description last, so that it stands for a whole world."""
    path = storage.join(state.world_folder, "world.json")
    if storage.exists(path):
        return
    world.write(made, state.base_url, state.world_folder)
    held_out.write(state.seed, state.world_folder)
    port = int(state.base_url.rsplit(":", 1)[1])
    storage.write_text(
        path, json.dumps({"rows": state.rows, "seed": state.seed, "port": port}) + "\n"
    )


def _train_and_evaluate(state: _Demo, run: str, number: int) -> dict[str, dict[str, float]]:
    """One training, resumed if it was begun, and its evaluations."""
    loaded = state.recipe_of(run, number)
    assert loaded.train is not None
    state.shown.say(f"training: {run}, seed {loaded.seed}")
    result = launch.run_rank(loaded, resume=True, progress=_Told(state.shown))
    return launch.run_evaluations(loaded, result["checkpoint"])


class _Told:
    """A line of training now and then."""

    def __init__(self, shown: progress.Progress) -> None:
        self.shown, self.next_s = shown, 0.0

    def __call__(self, line: dict[str, Any]) -> None:
        if time.monotonic() >= self.next_s:
            self.next_s = time.monotonic() + 15
            self.shown.say(
                f"  {line['samples_seen']} samples, loss {line['loss']:.3f}, {line['samples_per_s']:.0f} samples/s"
            )


def _write_report(state: _Demo) -> str:
    """OUT/report.html: the curated run's funnel beside both runs' curves and figures."""
    import dataclasses

    from pipelines.report import collect, written
    from pipelines.report.content import FaultRow
    from pipelines.report.page import write_report

    for run in RUNS:
        plan_recipe = state.recipe_of(run)
        assert plan_recipe.curate is not None
        assert plan_recipe.train is not None
        written.curation(plan_recipe.curate.shards, _entries(state) if run == "curated" else None)
        written.training(plan_recipe.train.out, plan_recipe.name)
    curated = state.recipe_of("curated")
    assert curated.curate is not None
    report = collect.curation_report(curated.curate.shards, _entries(state))
    outs = {run: state.recipe_of(run).train for run in RUNS}
    report = collect.with_runs(
        report, {run: out.out for run, out in outs.items() if out is not None}
    )
    faults = [
        FaultRow(name=f.fault, planted=f.planted, reached=f.reached, found=f.found if f.looked_for else None, precision=f.precision, recall=f.recall)
        for f in state.faults
    ]  # fmt: skip
    report = dataclasses.replace(
        report, title="clip-pipe demo", faults=faults, notes=[*report.notes, *_notes(state)]
    )
    path = storage.join(state.out, "report.html")
    write_report(path, report)
    return path


def _entries(state: _Demo) -> list[str]:
    return storage.read_text(storage.join(state.world_folder, "entries.txt")).splitlines()


def _notes(state: _Demo) -> list[str]:
    spread = (
        f"{state.seeds} seeds were trained per run; curves and figures are those of the first. The means and the spread are in what the command printed."
        if state.seeds > 1
        else "One seed was trained per run, so small differences mean nothing: see the spread in docs/benchmarks.md."
    )
    return [
        f"A rendered world of {state.rows} rows, seed {state.seed}. {spread}",
        "Rewrites come from the demo's own grammar, which stands in for the user's language model.",
    ]
