"""Several Ray nodes on this machine, in a process of their own, whose nodes can be killed by their process ids.

As a program (python -m tests.tiny.ray_nodes CPUS OPTIONS) it obeys lines of stdin: "kill N", "kill head", "add".
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class Nodes:
    """The cluster: a head and workers, numbered in the order they came, from 0."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self._process, self.environment = process, environment
        self.address = str(self._answer()["address"])

    def ask(self, words: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("the cluster's process ended")


@contextmanager
def running(
    cpus: Sequence[float] = (1, 1, 1), head: dict[str, Any] | None = None, **variables: str
) -> Iterator[Nodes]:
    """Nodes with so many ``cpus``, the head's first. ``head``: more options of it; ``variables``: of all."""
    with tempfile.TemporaryDirectory(prefix="n-") as name:  # short: Ray's sockets lie in it
        folder = Path(name)
        (folder / "token").write_text(secrets.token_hex(16))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_TMPDIR": name,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            **variables,
        }
        command = [sys.executable, "-m", "tests.tiny.ray_nodes", json.dumps(cpus), json.dumps(head or {})]  # fmt: skip
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, text=True, stderr=log,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            try:
                yield Nodes(process, environment)
            finally:
                with suppress(OSError):
                    process.stdin.close()  # type: ignore[union-attr]
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=60)
                process.kill()
                process.wait()
                kill_those_of(folder)


def kill_those_of(folder: Path) -> None:
    """End what was started with ``folder`` as RAY_TMPDIR, and is left."""
    mark = f"RAY_TMPDIR={folder}\0".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def kill(node: Any) -> int:
    """-9 to a node's own processes (raylet, agents, of a head the GCS) and to its raylet's workers."""
    own = [entry.process.pid for several in node.all_processes.values() for entry in several]
    below = [pid for pid in below_of(own) if pid not in own]
    for pid in [*own, *below]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(below)


def below_of(processes: Sequence[int]) -> list[int]:
    """Ids of the living processes that these have started, and those in turn."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, left = [], list(processes)
    while left:
        one = left.pop()
        mine = [pid for pid, parent in parents.items() if parent == one]
        found += mine
        left += mine
    return found


def main() -> None:
    from ray.cluster_utils import Cluster

    cpus, head = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    kept = os.dup(1)
    os.dup2(2, 1)  # Ray talks on stdout
    told = os.fdopen(kept, "w")

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=told, flush=True)

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": cpus[0], "include_dashboard": False, **head},
    )
    common = {name: head[name] for name in ("object_store_memory",) if name in head}
    nodes = [cluster.add_node(num_cpus=count, **common) for count in cpus[1:]]
    tell(address=cluster.address)
    for line in sys.stdin:
        word, _, which = line.strip().partition(" ")
        if word == "add":
            nodes.append(cluster.add_node(num_cpus=float(which or 1), **common))
            tell(nodes=len(nodes))
        else:
            node = cluster.head_node if which == "head" else nodes[int(which)]
            tell(killed=kill(node))
    cluster.shutdown()


if __name__ == "__main__":
    main()
