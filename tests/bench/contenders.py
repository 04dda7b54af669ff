"""What `tests/bench/download.py` measures, each in a fresh process: img2dataset's Downloader and download.fetch.

    python tests/bench/contenders.py NAME JOB.json     prints one JSON object: wall_s, cpu_s, ok, costs

The job has ``parts`` (lists of URLs), ``warm`` (URLs fetched before the clock starts: imports, children,
codecs), ``out``, ``hosts``, ``timeout_s``, ``concurrency``. Imports and start-up are not in these figures;
whole commands are measured from outside.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Process ids of all that descend from ``pid``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def tree_cpu_s() -> float:
    """User and system seconds of this process and of all its children, those that ended included."""
    ended, own = (
        resource.getrusage(who) for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
    )
    total = sum(one.ru_utime + one.ru_stime for one in (ended, own))
    return total + sum(cpu_s(pid, ended=True) for pid in children_of(os.getpid()))


def cpu_s(pid: int, ended: bool = False) -> float:
    """User and system seconds of one process, with ``ended`` also of children it has waited for; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if ended else 13])) / _TICKS_PER_S


def tree_pss_bytes(pid: int) -> int:
    """Proportional memory of a process and all that descend from it; what is shared counts once."""
    total = 0
    for one in (pid, *children_of(pid)):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(
            (int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0
        )
    return total * 1024


Run = Callable[[list[list[str]], str], dict[str, Any]]


def img2dataset(job: dict[str, Any], one_context: bool) -> Run:
    """Its Downloader on shards, one after another: keep_ratio, q95, webdataset, as its one process does it."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import pyarrow as pa
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    if one_context:
        import ssl
        from urllib.request import HTTPSHandler, build_opener, install_opener

        install_opener(build_opener(HTTPSHandler(context=ssl.create_default_context())))

    def run(parts: list[list[str]], out: str) -> dict[str, Any]:
        Path(out).mkdir(parents=True)
        ok = 0
        for index, urls in enumerate(parts):
            shard = f"{out}/{index}.feather"
            table = pa.table({"url": urls, "caption": [f"a picture at {url}" for url in urls]})
            with pa.OSFile(shard, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            downloader = Downloader(
                WebDatasetSampleWriter, Resizer(256, "keep_ratio", False, encode_quality=95),
                thread_count=job["concurrency"], save_caption=True, extract_exif=False, output_folder=out,
                column_list=["caption", "url"], timeout=job["timeout_s"], number_sample_per_shard=len(urls),
                oom_shard_count=5, compute_hash="sha256", verify_hash_type=None, encode_format="jpg", retries=0,
                user_agent_token=None,
                disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
            )  # fmt: skip
            downloader.download_shard((index, shard))
            ok += json.loads(Path(f"{out}/{index:05d}_stats.json").read_text())["successes"]
        return {"ok": ok}

    return run


def clip_pipe(job: dict[str, Any], **options: Any) -> Run:
    """download.fetch and the tar writer, driven as the runner drives them: part by part, looking ahead."""
    import pyarrow as pa

    from curate.contract import tars
    from curate.download.fetch import Fetch

    stage = Fetch(
        allow_hosts=tuple(job["hosts"]), timeout=job["timeout_s"], first_byte_timeout=job["timeout_s"],
        thread_count=job["concurrency"], **{"decode_processes": 1, **options},
    )  # fmt: skip
    stage.check()
    state = stage.open()

    def run(parts: list[list[str]], out: str) -> dict[str, Any]:
        Path(out).mkdir(parents=True)
        stage.costs(state)
        ok, tar_cpu_s = 0, 0.0
        tables = [
            pa.table(
                {
                    "uid": [hashlib.sha256(url.encode()).hexdigest()[:32] for url in urls],
                    "url": urls,
                }
            )
            for urls in parts
        ]
        stage.expect(tables[0], state, f"{out}/notes-0")
        ahead = threading.Thread(target=look_ahead, args=(stage, state, tables, out), daemon=True)
        ahead.start()
        for index, table in enumerate(tables):
            with open(f"{out}/{index}.tar", "wb") as file:
                for start in range(0, len(table), stage.batch_rows):
                    batch = table.slice(start, stage.batch_rows)
                    images = stage.process(batch, state)["image"].to_pylist()
                    began = time.thread_time()
                    for uid, image in zip(batch["uid"].to_pylist(), images):
                        if image is not None:
                            file.write(tars.member(f"{uid}.{tars.image_extension(image)}", image))
                            ok += 1
                    tar_cpu_s += time.thread_time() - began
                file.write(tars.END)
        ahead.join()
        return {"ok": ok, "costs": {**stage.costs(state), "tar_cpu_s": tar_cpu_s}}

    return run


def look_ahead(stage: Any, state: Any, tables: list[Any], out: str) -> None:
    """Tell the stage of the parts that follow as soon as it wants more, as the runner's thread does."""
    for number, table in enumerate(tables[1:], 1):
        while not stage.wants_more(state):
            time.sleep(0.1)
        stage.expect(table, state, f"{out}/notes-{number}")


CONTENDERS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "img2dataset": lambda job: img2dataset(job, one_context=False),
    "img2dataset, one SSLContext": lambda job: img2dataset(job, one_context=True),
    "clip-pipe fast": lambda job: clip_pipe(job, quality="fast"),
    "clip-pipe exact": lambda job: clip_pipe(job, quality="exact"),
    "clip-pipe fast, 2 decoders": lambda job: clip_pipe(job, quality="fast", decode_processes=2),
}


def main() -> None:
    name, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    run = CONTENDERS[name](job)
    if job["warm"]:
        run([job["warm"]], job["out"] + "/warm")
    began_s, began_cpu_s = time.monotonic(), tree_cpu_s()
    found = run(job["parts"], job["out"] + "/run")
    measured = {"wall_s": time.monotonic() - began_s, "cpu_s": tree_cpu_s() - began_cpu_s}
    print(json.dumps({**measured, **found}), flush=True)
    os._exit(0)  # idle threads and children are of no interest any more


if __name__ == "__main__":
    main()
