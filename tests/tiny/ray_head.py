"""A Ray head of a test's own, as `ray start` makes it: on loopback, with dashboard and token; ended by process id."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
_UP_S = 120


@dataclass
class Head:
    """Where it listens, and an environment in which `ray` and `cli.py` know its token."""

    address: str
    dashboard: str
    environment: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def ray(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`ray ...` with the cluster's token, or with other variables; '' takes one away."""
        return self._run([RAY, *arguments], changes)

    def command(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`python cli.py ...` beside the cluster."""
        return self._run([sys.executable, str(ROOT / "cli.py"), *arguments], changes)

    def submit(
        self, *entrypoint: str, before: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- ...`, from the repository's folder."""
        return self.ray(
            "job", "submit", "--log-style", "record", "--address", self.dashboard, "--working-dir", ".",
            *before, "--", *entrypoint,
        )  # fmt: skip

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """A process of the cluster, ended with it."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )
        self.started.append(process)
        return process

    def _run(self, command: list[str], changes: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **changes}
        environment = {name: value for name, value in environment.items() if value}
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment
        )


@contextmanager
def running(cpus: int = 3) -> Iterator[Head]:
    """A head with ``cpus``; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="r-") as name:  # short: Ray's sockets lie in it
        folder = Path(name)
        ports = _free_ports(4)
        (folder / "token").write_text(secrets.token_hex(16))
        head = Head(
            address=f"127.0.0.1:{ports[0]}",
            dashboard=f"http://127.0.0.1:{ports[1]}",
            environment={
                **{
                    name: value for name, value in os.environ.items() if not name.startswith("RAY_")
                },
                "HOME": str(folder),
                "RAY_TMPDIR": str(folder),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "NO_COLOR": "1",
            },
        )
        command = [
            RAY, "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}",
            "--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}",
            f"--dashboard-agent-listen-port={ports[2]}", f"--ray-client-server-port={ports[3]}",
            "--object-store-memory=150000000", f"--temp-dir={folder}",
        ]  # fmt: skip
        try:
            for _ in range(3):  # Ray gives its own start 30 seconds: too few on a busy machine
                if _is_up(head.start(command, folder / "head.log"), folder / "head.log", ports[1]):
                    break
                end_all_of(folder)
            else:
                told = (folder / "head.log").read_text()[-3000:]
                raise RuntimeError(f"the Ray head did not come up:\n{told}")
            yield head
        finally:
            for process in reversed(head.started):
                _end(process, folder)


def _is_up(process: subprocess.Popen[bytes], log: Path, port: int) -> bool:
    """Whether a head came up whole: the command says so, and its dashboard answers."""
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
        if "will now block" not in log.read_text():
            continue
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    return False


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End a `ray start --block` and all that it started."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    end_all_of(folder)
    process.kill()
    process.wait()


def end_all_of(folder: Path) -> None:
    """End every process that was started with ``folder`` as RAY_TMPDIR, by its id."""
    mark = f"RAY_TMPDIR={folder}\0".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
