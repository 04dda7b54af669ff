"""What is broken on purpose, and what comes of it: the table of docs/reliability.md, as markdown.

    python tests/bench/faults.py [--only NAME...] [--list]

Each fault is really made: whole `clip-pipe` commands in processes of their own, on three Ray nodes of this machine
or in one process, that are killed, starved, cut off or given damaged files. Then the same command is run
again, and tars, index, sizes and ledger are compared with those of an undisturbed run, byte for byte. Faults that
need a mount are skipped, and said to be, where mounting is not allowed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from tests.tiny import faults as traps
from tests.tiny import models, object_server, ray_nodes, scenes, slow, stages

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS, ROWS_PER_PART = 120, 10
_END_S = 600
_SHOWN = 200  # characters of a message
CASES: dict[str, Callable[[Bench], Iterator[Row] | Row]] = {}


class Skipped(Exception):
    """This machine can't make the fault; says why."""


@dataclass
class Row:
    """A line of the table. ``seconds``: of the run that was disturbed; ``normal_s``: of one that was not."""

    fault: str
    how: str
    seen: str
    code: str
    same: str
    seconds: float = 0.0
    normal_s: float = 0.0

    @property
    def is_good(self) -> bool:
        return "NO" not in self.same and not self.seen.startswith(("TRACEBACK", "HUNG"))

    def text(self) -> str:
        took = f"{self.seconds:.0f} s ({self.normal_s:.0f} s)" if self.normal_s else "–"
        seen = self.seen if len(self.seen) <= _SHOWN else self.seen[:_SHOWN] + " ..."
        cells = [self.fault, self.how, seen, self.code, took, self.same]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


HEAD = (
    "| fault | how it was made | what was seen | exit code | time (undisturbed) | same bytes |\n"
    "|---|---|---|---|---|---|"
)


class Web(BaseHTTPRequestHandler):
    """Pictures by number, each after a moment."""

    def do_GET(self) -> None:
        time.sleep(0.02)
        number = int(self.path.strip("/").removesuffix(".jpg"))
        body = scenes.picture(number, 96, "JPEG")
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """The pictures' server, at one port for as long as this runs; it can be taken down and brought back."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Web)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@dataclass
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def first(self) -> str:
        """The error's first line, or the last one said."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        found = [line for line in lines if line.startswith(("error:", "stopped."))]
        words = (found or lines[-1:] or [""])[0]
        if self.code == -999:
            words = f"HUNG; {words}"
        if "Traceback (most recent" in self.err:
            say(self.err[-3000:])
            words = f"TRACEBACK {words}"
        return words


class Command:
    """`python cli.py ...` at work, in a process group of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments], cwd=ROOT, env=environment,
            stdout=self._files[0], stderr=self._files[1], text=True, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, seen: Callable[[], object]) -> None:
        """Until something is true. Raises AssertionError where the command ends before."""
        until = time.monotonic() + _END_S
        while not seen():
            assert self.process.poll() is None, (
                f"ended before the fault: {self.ended().err[-2000:]}"
            )
            assert time.monotonic() < until, "not come to the fault"
            time.sleep(0.02)

    def kill(self) -> None:
        """-9 to all of the process's group and what it started beside that: Ray's own processes."""
        below = ray_nodes.below_of([self.process.pid])
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        time.sleep(0.5)
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ended(self, timeout_s: float = _END_S) -> Ended:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=timeout_s)
        is_hung = self.process.poll() is None
        if is_hung:
            self.kill()
        seconds = time.monotonic() - self._began
        told = []
        for file in self._files:
            file.seek(0)
            told.append(file.read())
        return Ended(-999 if is_hung else self.process.returncode, told[0], told[1], seconds)


@dataclass
class Job:
    """One recipe with its folders; ``digest()`` of what it made."""

    folder: Path
    recipe: Path
    table: dict[str, Any]

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def count(self, pattern: str) -> int:
        return len(list(self.pool.glob(pattern)))

    def parts(self, stage: str) -> int:
        return self.count(f"columns/*{stage}*/part-*.json")

    def digest(self) -> str:
        assert (self.shards / "manifest.json").exists()
        return digest_of({path.name: path.read_bytes() for path in self.shards.iterdir()})


def digest_of(files: dict[str, bytes]) -> str:
    """Of what is the same for any run: all but the manifest (folders, seconds) and the report."""
    whole = hashlib.sha256()
    for name in sorted(files):
        if name.endswith((".tar", ".parquet")) or name == "sizes.json":
            whole.update(name.encode() + hashlib.sha256(files[name]).digest())
    return whole.hexdigest()


class Bench:
    """What faults are made with: a folder, a server, a cluster, and undisturbed runs."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, *, quick: bool = False) -> None:
        """``quick``: one process, and pictures that nobody has to send."""
        self.folder, self._stack, self._is_quick = folder, stack, quick
        self.places = ("local",) if quick else ("local", "nodes")
        self.disks = [("pool", "100k"), ("shards", "150k")][1 if quick else 0 :]
        self.server = Server()
        self._quiet: dict[str, tuple[str, float]] = {}
        urls = [f"http://127.0.0.1:{self.server.port}/{n}.jpg" for n in range(ROWS)]
        captions = [f"{scenes.caption(n)} number {n}" for n in range(ROWS)]
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "rows.parquet")

    @cached_property
    def nodes(self) -> ray_nodes.Nodes:
        """Three Ray nodes of one CPU each; made when the first fault asks for them."""
        return self._stack.enter_context(ray_nodes.running())

    @cached_property
    def model(self) -> dict[str, str]:
        return models.clip_options(self.folder)

    @property
    def fetch(self) -> dict[str, Any]:
        return {
            "use": "download.fetch", "allow_hosts": ["127.0.0.1"], "image_size": 64, "thread_count": 8,
            "decode_processes": 1,
        }  # fmt: skip

    number_of_node = 0  # the next to be killed

    def short(self, pause: float = 0.05) -> list[dict[str, Any]]:
        pictures = {"use": f"{stages.USE}:Picture"} if self._is_quick else self.fetch
        return [{"use": f"{traps.USE}:Trap0", "pause": pause}, pictures]

    def whole(self) -> list[dict[str, Any]]:
        return [
            {"use": f"{traps.USE}:Trap0", "pause": 0.2},
            self.fetch,
            {"use": "filter.duplicate_image"},
            {"use": "score.clip_score", **self.model},
            {"use": f"{traps.USE}:SlowPool", "seconds": 0.5},
        ]

    def job(self, name: str, stages: list[dict[str, Any]], **curate: Any) -> Job:
        folder = self.folder / name
        folder.mkdir()
        table = {
            "pool": str(folder / "pool"), "shards": str(folder / "shards"),
            "source": {
                "use": "source.url_table", "path": str(self.folder / "rows.parquet"),
                "rows_per_part": ROWS_PER_PART,
            },
            "stage": stages,
            "shard": {"use": f"{slow.USE}:SlowWrite", "samples_per_shard": 20, "pause": 0.0 if self._is_quick else 0.3},
            **curate,
        }  # fmt: skip
        recipe = folder / "recipe.toml"
        recipe.write_text(tomli_w.dumps({"name": "faults", "curate": table}))
        return Job(folder, recipe, table)

    def curate(self, job: Job, *more: str, on: str = "local", **variables: str) -> Command:
        """``on``: "local" (this process), "ray" (a Ray of its own), "nodes" (the three), or an address."""
        where = {"local": ["--local"], "ray": ["--workers", "2"]}.get(on)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if where is None:
            environment = dict(self.nodes.environment)
            where = ["--address", self.nodes.address if on == "nodes" else on]
        return Command(["curate", str(job.recipe), *where, *more], {**environment, **variables})

    def quiet(self, kind: str, stages: list[dict[str, Any]], on: str) -> tuple[str, float]:
        """Digest and seconds of a run that nobody disturbs; once for each kind."""
        if kind not in self._quiet:
            job = self.job(f"quiet-{kind}", stages)
            done = self.curate(job, on=on).ended()
            assert done.code == 0, done.err[-3000:]
            say(f"undisturbed {kind}: {done.seconds:.1f} s")
            self._quiet[kind] = job.digest(), done.seconds
        return self._quiet[kind]

    def again(self, job: Job, wanted: str, *more: str, on: str = "local") -> str:
        """The same command once more: whether it gives the bytes."""
        done = self.curate(job, *more, on=on).ended()
        if done.code:
            return f"NO: the re-run ended with {done.code}: {done.first}"
        return "yes" if job.digest() == wanted else "NO"


def case(name: str) -> Callable[[Any], Any]:
    def noted(function: Any) -> Any:
        CASES[name] = function
        return function

    return noted


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def mounted(*arguments: str, at: Path) -> Iterator[None]:
    done = subprocess.run(
        ["mount", *arguments, str(at)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Skipped(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=False)


# -- the driver, the disk, the files


@case("driver")
def driver_killed(bench: Bench) -> Iterator[Row]:
    wanted, normal_s = bench.quiet("short-nodes", bench.short(), "nodes")
    moments = {
        "download": lambda job: job.parts("fetch") >= 3,
        "sharding": lambda job: job.count("work/*/ledger/*.json") >= 3,
    }
    for name, seen in moments.items():
        job = bench.job(f"driver-{name}", bench.short())
        run = bench.curate(job, on="nodes")
        run.wait_for(lambda job=job, seen=seen: seen(job))
        run.kill()
        done = bench.curate(job, on="nodes").ended()
        told = [line for line in done.err.splitlines() if "ended without an end" in line]
        same = "yes" if done.code == 0 and job.digest() == wanted else f"NO {done.first}"
        yield Row(f"driver killed, {name}", "kill -9 of `clip-pipe curate --address`; the cluster lives on", f"by the re-run: {(told or ['nothing'])[0]}", f"137; re-run {done.code}", same, done.seconds, normal_s)  # fmt: skip


@case("disk")
def full_disk(bench: Bench) -> Iterator[Row]:
    wanted, _ = bench.quiet("short", bench.short(0), "local")
    for name, size in bench.disks:
        for on in bench.places:
            job = bench.job(f"disk-{name}-{on}", bench.short(0))
            place = job.folder / name
            place.mkdir()
            with mounted("-t", "tmpfs", "-o", f"size={size}", "none", at=place):
                done = bench.curate(job, on=on).ended()
                subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
                same = bench.again(job, wanted, on=on)
            yield Row(f"full disk, {name}, {where(on)}", f"a tmpfs of {size}; made larger for the re-run", done.first, str(done.code), same, done.seconds)  # fmt: skip


def where(on: str) -> str:
    return {"local": "`--local`", "nodes": "Ray", "ray": "Ray"}[on]


@case("read-only")
def read_only(bench: Bench) -> Iterator[Row]:
    """We may be root, so it is a bind mount; at the start, and in the middle."""
    wanted, _ = bench.quiet("short", bench.short(0), "local")
    for name, at_start, on in (("pool", True, "local"), ("shards", True, "local"), ("pool", False, "local"), ("pool", False, "nodes"), ("shards", False, "nodes")):  # fmt: skip
        job = bench.job(f"readonly-{name}-{at_start}-{on}", bench.short(0.02))
        place = job.folder / name
        place.mkdir()
        with contextlib.ExitStack() as over:
            run = None
            if not at_start:
                run = bench.curate(job, on=on)
                done_so_far = (
                    "columns/*Trap0*/part-*.json" if name == "pool" else "work/*/ledger/*.json"
                )
                run.wait_for(lambda job=job, done=done_so_far: job.count(done) >= 3)
            over.enter_context(mounted("--bind", str(place), at=place))
            subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
            done = (run or bench.curate(job, on=on)).ended()
        same = bench.again(job, wanted, on=on)
        when = "from the start" if at_start else "in the middle"
        yield Row(f"read-only {name}, {when}, {where(on)}", "a bind mount, read-only (we may be root)", done.first, str(done.code), same, done.seconds)  # fmt: skip


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    data[-6] ^= 0x40
    path.write_bytes(bytes(data))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@case("corrupt")
def corrupt_parts(bench: Bench) -> Iterator[Row]:
    """A run is killed at the shards, its pool is damaged, and the command run again."""
    wanted, normal_s = bench.quiet("short", bench.short(0), "local")
    kinds: list[tuple[str, str, Callable[[Path], None]]] = [
        ("rows cut", "rows/part-00003.parquet", _cut),
        ("sidecar cut", "columns/*Trap0*/part-00004.parquet", _cut),
        ("sidecar, bits flipped", "columns/*Trap0*/part-00005.parquet", _flip),
        ("sidecar of a download deleted", "columns/download*/part-00006.parquet", Path.unlink),
        ("pictures cut", "images/*/part-00007.tar", _cut),
        ("manifest, bits flipped", "columns/*Trap0*/part-00008.json", _flip),
        ("manifest deleted", "columns/download*/part-00009.json", Path.unlink),
    ]
    for name, pattern, damage in kinds:
        job = bench.job(f"corrupt-{name.replace(' ', '-')}", bench.short(0))
        run = bench.curate(job)
        run.wait_for(lambda job=job: job.count("work/*/ledger/*.json") >= 2)
        run.kill()
        (path,) = job.pool.glob(pattern)
        damage(path)
        done = bench.curate(job).ended()
        lines = done.err.splitlines()
        told = [line.replace(f"{path.parent}/", "") for line in lines if "damaged" in line]
        told = told or ["no word: a part without a manifest is not done, and is made again"]
        same = "yes" if done.code == 0 and job.digest() == wanted else f"NO {done.first}"
        yield Row(f"damaged part: {name}", f"`{path.name}` of a run killed while sharding", told[0], str(done.code), same, done.seconds, normal_s)  # fmt: skip


# -- lost nodes


def _node_killed(bench: Bench, name: str, seen: Callable[[Job], bool]) -> Row:
    wanted, normal_s = bench.quiet("whole", bench.whole(), "nodes")
    job = bench.job(f"node-{name}", bench.whole())
    run = bench.curate(job, on="nodes")
    run.wait_for(lambda: seen(job))
    killed = bench.nodes.ask(f"kill {bench.number_of_node}")["killed"]
    done = run.ended()
    bench.number_of_node += 1
    bench.nodes.ask("add 1")
    if done.code:
        same = (
            f"NO, it did not end by itself; after a re-run: {bench.again(job, wanted, on='nodes')}"
        )
    else:
        same = "yes" if job.digest() == wanted else "NO"
    seen_told = f"{'ended by itself' if not done.code else done.first}"
    return Row(f"worker node lost, {name}", f"kill -9 of its raylet and {killed} processes; not replaced", seen_told, str(done.code), same, done.seconds, normal_s)  # fmt: skip


@case("node-rows")
def node_rows(bench: Bench) -> Row:
    return _node_killed(bench, "row stage", lambda job: job.parts("Trap0") >= 4)


@case("node-global")
def node_global(bench: Bench) -> Row:
    return _node_killed(bench, "global stage", lambda job: job.parts("SlowPool") >= 3)


@case("node-shards")
def node_shards(bench: Bench) -> Row:
    return _node_killed(bench, "shards", lambda job: job.count("work/*/ledger/*.json") >= 3)


@case("node-download")
def node_download(bench: Bench) -> Row:
    return _node_killed(bench, "download", lambda job: job.parts("fetch") >= 3)


@case("node-model")
def node_model(bench: Bench) -> Row:
    return _node_killed(bench, "model", lambda job: job.parts("clip_score") >= 1)


@case("head")
def head_killed(bench: Bench) -> Row:
    wanted, normal_s = bench.quiet("short", bench.short(0), "local")
    job = bench.job("head", bench.short())
    with ray_nodes.running() as nodes:
        environment = nodes.environment
        run = Command(["curate", str(job.recipe), "--address", nodes.address], environment)
        run.wait_for(lambda: job.parts("Trap0") >= 4)
        nodes.ask("kill head")
        started = time.monotonic()
        done = run.ended(300)
        seconds = time.monotonic() - started
    same = bench.again(job, wanted, on="nodes")
    return Row("head node lost", "kill -9 of GCS, raylet and workers; another cluster for the re-run", f"{done.first} (after {seconds:.0f} s)", str(done.code), same, done.seconds, normal_s)  # fmt: skip


# -- rows and parts that fail


def _bad_row(bench: Bench, how: str, words: str, kind: str) -> Row:
    """100 parts; one has a row that hangs, eats memory or kills."""
    trap: dict[str, Any] = {"use": f"{traps.USE}:Trap1", "at": "number 77", "how": how}
    if how == "eat":
        trap["memory_gb"] = 0.5  # tried with 1 and 2 GiB, too; it eats 2.5
    job = bench.job(f"bad-{how}", [trap], source=_hundred(bench))
    deadline = ["--task-deadline", "20"] if how == "hang" else []
    done = bench.curate(job, *deadline, on="nodes").ended()
    lost = _refused(job) if done.code == 0 else {}
    good = lost == {"77": f"error.{traps.USE}:Trap1.{kind}"}
    seen = f"row 77: `{lost.get('77')}`; all others are kept" if good else done.first
    return Row(f"a row that {words}", f"100 parts, one such row; {' '.join(deadline) or 'no options'}", seen, str(done.code), "yes: all rows but it" if good else f"NO {lost}", done.seconds)  # fmt: skip


def _refused(job: Job) -> dict[str, str]:
    """Number of each row that was not kept, and why."""
    ledger = pq.read_table(job.shards / "ledger.parquet").to_pylist()
    return {row["caption"].rsplit(" ", 1)[-1]: row["reason"] for row in ledger if row["reason"]}


@case("row-hangs")
def row_hangs(bench: Bench) -> Row:
    return _bad_row(bench, "hang", "hangs", "hung")


@case("row-eats")
def row_eats(bench: Bench) -> Row:
    return _bad_row(bench, "eat", "eats memory (`memory_gb = 0.5`)", "memory")


@case("row-kills")
def row_kills(bench: Bench) -> Row:
    return _bad_row(bench, "exit", "kills its process", "died")


def _hundred(bench: Bench) -> dict[str, Any]:
    path = bench.folder / "hundred.parquet"
    urls, captions = [f"u{n}" for n in range(200)], [f"a number {n}" for n in range(200)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), path)
    return {"use": "source.url_table", "path": str(path), "rows_per_part": 2}


@case("bad-part")
def bad_part(bench: Bench) -> Row:
    mended = bench.folder / "mended"
    stage = {"use": f"{traps.USE}:Uncommittable", "at": "number 77", "mended": str(mended)}
    job = bench.job("bad-part", [stage], source=_hundred(bench))
    done = bench.curate(job, on="nodes").ended()
    count = job.parts("Uncommittable")
    status = Command(["status", str(job.pool)], dict(bench.nodes.environment)).ended()
    named = "part 38" in status.out
    mended.touch()
    then = bench.curate(job, on="nodes").ended()
    same = f"{'yes' if then.code == 0 and job.parts('Uncommittable') == 100 else 'NO'}; status names it: {named}"
    return Row("a part that always fails", "a stage whose part 38 of 100 can't be committed", f"{count} parts done; {done.first}", str(done.code), same, done.seconds)  # fmt: skip


# -- several runs, clocks, memory


@case("two-runs")
def two_runs(bench: Bench) -> Row:
    wanted, _ = bench.quiet("short", bench.short(0), "local")
    job = bench.job("two", bench.short(0.1))
    first = bench.curate(job)
    first.wait_for(lambda: job.parts("Trap0") >= 2)
    second = bench.curate(job).ended()
    done = first.ended()
    same = "yes" if done.code == 0 and job.digest() == wanted else f"NO {done.first}"
    return Row("two runs on one pool", "the same command twice; the first goes on", second.first, str(second.code), same, second.seconds)  # fmt: skip


@case("clock")
def clock_jumps(bench: Bench) -> Row:
    """One run whose clock goes a day back in the middle, another a year ahead that wants its pool."""
    wanted, _ = bench.quiet("short", bench.short(0), "local")
    folder = bench.folder / "clocks"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, time\nbefore, began = time.time, time.monotonic()\n"
        "late = float(os.environ['JUMP_AFTER'])\n"
        "time.time = lambda: before() + (float(os.environ['JUMP']) if time.monotonic() - began > late else 0)\n"
    )
    path = f"{folder}:{ROOT}"
    job = bench.job("clock", bench.short(0.2))
    first = bench.curate(job, PYTHONPATH=path, JUMP="-86400", JUMP_AFTER="4")
    first.wait_for(lambda: job.parts("Trap0") >= 4)
    second = bench.curate(job, PYTHONPATH=path, JUMP="31536000", JUMP_AFTER="0").ended()
    done = first.ended()
    same = "yes" if done.code == 0 and job.digest() == wanted else f"NO {done.first}"
    return Row("clocks that jump", "Python's clock a day back in the middle; a second run a year ahead", second.first, f"{done.code}; of the second {second.code}", same, second.seconds)  # fmt: skip


@case("object-store")
def object_store_full(bench: Bench) -> Row:
    """Filled by another driver, that holds all of it."""
    wanted, normal_s = bench.quiet("short-nodes", bench.short(), "nodes")
    job = bench.job("store", bench.short())
    with ray_nodes.running(head={"object_store_memory": 80 << 20}) as nodes:
        code = (
            "import ray, sys, numpy\nray.init(address=sys.argv[1], log_to_driver=False)\n"
            "held = [ray.put(numpy.ones(9 << 20, numpy.uint8)) for _ in range(16)]\n"
            "print('full', flush=True)\nsys.stdin.read()"
        )
        filler = subprocess.Popen(
            [sys.executable, "-c", code, nodes.address], env=nodes.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert filler.stdout is not None
        while "full" not in (line := filler.stdout.readline()):
            assert line, "the filler ended"
        done = Command(
            ["curate", str(job.recipe), "--address", nodes.address], nodes.environment
        ).ended()
        filler.kill()
        filler.wait()
    same = "yes" if done.code == 0 and job.digest() == wanted else "NO"
    return Row("object store full", "80 MB on each node, 144 MB held there by another driver", done.first if done.code else "ended by itself", str(done.code), same, done.seconds, normal_s)  # fmt: skip


@case("worker-memory")
def worker_memory(bench: Bench) -> Row:
    """Ray's own monitor ends the worker: its threshold lies 2.25 GiB above what the machine held before Ray came."""
    found = {
        line.split(":")[0]: int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
    }
    used = found["MemTotal"] - found["MemAvailable"]
    share = (used + (9 << 28)) / found["MemTotal"]
    stage = {"use": f"{traps.USE}:Trap1", "at": "number 77", "how": "eat"}
    job = bench.job("memory", [stage], source=_hundred(bench))
    with ray_nodes.running(RAY_memory_usage_threshold=f"{share:.3f}", RAY_memory_monitor_refresh_ms="50") as nodes:  # fmt: skip
        done = Command(
            ["curate", str(job.recipe), "--address", nodes.address], nodes.environment
        ).ended()
    how = f"a row eats 2.5 GiB, Ray's monitor ends workers at {share:.0%} of the memory"
    if done.code:
        then = bench.curate(job, on="nodes").ended()
        is_good = then.code == 0 and not _refused(job)
        same = "yes, where there is room: all rows" if is_good else f"NO {then.first}"
        return Row("worker out of memory", how, done.first, str(done.code), same, done.seconds)
    lost = _refused(job)
    is_good = lost == {"77": f"error.{traps.USE}:Trap1.memory"}
    return Row("worker out of memory", how, f"row 77: `{lost.get('77')}`; all others are kept", "0", "yes: all rows but it" if is_good else f"NO {lost}", done.seconds)  # fmt: skip


# -- servers


@case("server")
def server_dies(bench: Bench) -> Row:
    wanted, _ = bench.quiet("short", bench.short(0), "local")
    job = bench.job("server", bench.short(0))
    run = bench.curate(job, "--task-deadline", "0")
    run.wait_for(lambda: job.parts("fetch") >= 4)
    bench.server.stop()
    done = run.ended()
    bench.server.start()
    same = bench.again(job, wanted, "--retry", "transient")
    return Row("the pictures' server dies", "taken down after 4 of 12 parts, back for `curate --retry transient`", done.first, str(done.code), same, done.seconds)  # fmt: skip


@case("server-back")
def server_comes_back(bench: Bench) -> Row:
    wanted, _ = bench.quiet("short", bench.short(0), "local")
    job = bench.job("server-back", bench.short(0))
    run = bench.curate(job)
    run.wait_for(lambda: job.parts("fetch") >= 4)
    bench.server.stop()
    time.sleep(1)
    bench.server.start()
    done = run.ended()
    kept = json.loads(done.out.splitlines()[-1])["kept"] if done.code == 0 else 0
    same = bench.again(job, wanted, "--retry", "transient")
    return Row("the pictures' server is away for 1 s", "taken down after 4 of 12 parts; then `curate --retry transient`", f"{kept} of {ROWS} rows kept; {done.first if done.code else ''}", str(done.code), same, done.seconds)  # fmt: skip


@case("s3-busy")
def s3_busy(bench: Bench) -> Row:
    wanted, normal_s = bench.quiet("short", bench.short(0), "local")
    with object_server.moto() as address, object_server.proxy(address, every=20) as proxy:
        object_server.make_bucket(address, "faults")
        job = bench.job("s3", bench.short(0), pool="s3://faults/pool", shards="s3://faults/shards")
        done = bench.curate(job, **object_server.environment(proxy.address)).ended()
        failed = sum(bool(kind) for _, _, kind in proxy.seen)
        listed = _asked(f"{address}/faults?list-type=2&prefix=shards/").decode()
        names = [part.split("</Key>")[0] for part in listed.split("<Key>")[1:]]
        files = {Path(name).name: _asked(f"{address}/faults/{name}") for name in names}
    same = (
        "yes, as on disk" if done.code == 0 and digest_of(files) == wanted else f"NO {done.first}"
    )
    return Row("object store fails 1 request in 20", "moto behind a proxy: 503, resets, lost and cut answers in turn", f"{failed} of {len(proxy.seen)} requests failed; ended by itself", str(done.code), same, done.seconds, normal_s)  # fmt: skip


def _asked(url: str) -> bytes:
    """What moto holds; it looks whether a request is signed, not by whom."""
    signed = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    request = urllib.request.Request(url, headers={"Authorization": signed})
    with urllib.request.urlopen(request, timeout=60) as answer:
        body: bytes = answer.read()
        return body


# -- training


@case("train")
def trainer_node(bench: Bench) -> Row:
    from tests.pipelines import test_killed_training as killed

    folder = bench.folder / "train"
    folder.mkdir()
    options = {"checkpoint_minutes": 0.005}
    took = {}
    for out in ("quiet", "killed"):
        path = killed.write(folder, 150, out, **options)
        with ray_nodes.running((1, 1, 1)) as nodes:
            run = Command(["train", path, "--ray", "2", "--address", nodes.address], nodes.environment)  # fmt: skip
            if out == "killed":
                run.wait_for(lambda: killed.lines(folder / "killed") >= 40)
                nodes.ask("kill 0")
            done = run.ended()
        took[out] = done.seconds
        assert done.code == 0, done.err[-3000:]
        say(f"training {out}: {done.seconds:.0f} s")
    try:
        killed.assert_same_bits(folder / "killed", folder / "quiet")
        same = "yes: weights, moments, averages, metrics"
    except AssertionError as fault:
        same = f"NO: {fault}"
    return Row("worker node of a training lost", "`train --ray 2`, kill -9 of a worker node after 40 of 150 steps", "starts again from the last checkpoint by itself", str(done.code), same, took["killed"], took["quiet"])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME"
    )
    parser.add_argument("--list", action="store_true", help="names of the faults")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(CASES))
        return
    random.seed(0)
    print(HEAD, flush=True)
    wrong = 0
    with (
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        bench = Bench(Path(name), stack)
        for one in arguments.only:
            say(one)
            wrong += _told(CASES[one], bench, one)
    sys.exit(1 if wrong else 0)


def _told(made: Callable[[Bench], Iterator[Row] | Row], bench: Bench, name: str) -> int:
    """Print the rows of a fault; how many of them were not survived."""
    wrong = 0
    try:
        found = made(bench)
        for row in [found] if isinstance(found, Row) else found:
            row.seen = row.seen.replace(str(bench.folder), "")
            print(row.text(), flush=True)
            wrong += not row.is_good
    except Skipped as why:
        print(f"| {name} | – | not run: {why} | – | – | – |", flush=True)
    except AssertionError as fault:
        print(f"| {name} | – | FAILED: {fault} | – | – | NO |", flush=True)
        wrong += 1
    return wrong


if __name__ == "__main__":
    main()
