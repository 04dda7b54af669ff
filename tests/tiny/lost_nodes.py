"""A run on three Ray nodes, a node killed in the middle of every kind of step; prints what became of it as JSON.

python -m tests.tiny.lost_nodes FOLDER [--undisturbed]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipelines import curation, recipe, run_ray
from pipelines.plan import plan_curation
from pipelines.progress import Progress
from tests.tiny.faults import USE
from tests.tiny.stages import USE as STAGES

ROOT = Path(__file__).resolve().parent.parent.parent
_KILL_AFTER = 2  # results of a step


class _Killing(Progress):
    """Kills a node in the middle of each step that is named, and puts another in its place at the step's end."""

    def __init__(self, cluster: Any, nodes: list[Any], steps: dict[str, str]) -> None:
        super().__init__(sys.stderr)
        self._cluster, self._nodes, self._steps = cluster, nodes, steps
        self.killed: list[str] = []

    def advance(self, note: str = "") -> None:
        super().advance(note)
        kind = next((k for part, k in self._steps.items() if part in self._title), None)
        if kind and kind not in self.killed and self._done >= _KILL_AFTER:
            self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
            self.killed.append(kind)
            if len(self.killed) < len(self._steps):
                self._nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1))


def made(folder: Path) -> recipe.Recipe:
    stages = [
        {"use": f"{USE}:Trap0", "pause": 0.1},
        {"use": f"{STAGES}:Picture"},
        {"use": f"{USE}:SlowPool", "seconds": 0.2},
        {"use": f"{USE}:Trap1", "pause": 0.1, "gpus": 1.0},
    ]
    table = {
        "pool": str(folder / "pool"),
        "shards": str(folder / "shards"),
        "source": {"use": f"{STAGES}:Numbers", "count": 96, "rows_per_part": 8},
        "stage": stages,
        "shard": {"use": "shard.write", "samples_per_shard": 10},
    }
    return recipe.from_data({"name": "lost", "curate": table}, "lost.toml")


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    folder, undisturbed = Path(sys.argv[1]), "--undisturbed" in sys.argv
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": environment})
    steps = {"Trap0": "rows", "SlowPool": "global", "Trap1": "gpu", "shard.write": "shard"}
    progress = _Killing(cluster, nodes, {} if undisturbed else steps)
    started = time.monotonic()
    loaded = made(folder)
    with run_ray.connected() as runner:
        manifest = curation.run(plan_curation(loaded), runner, progress, loaded).manifest
    seconds = time.monotonic() - started
    print(json.dumps({"killed": progress.killed, "seconds": seconds, "kept": manifest["kept"]}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
