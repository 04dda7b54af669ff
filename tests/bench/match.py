"""Captions per CPU-second and memory of the entry matcher, as a small table.

    python tests/bench/match.py [--entries FILE] [--captions FILE] [--rows N]

Without files it takes the shared data where it is there (a list of 328,078 entries and real
alt-texts), else it makes a Zipf-distributed vocabulary, entries and captions.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from curate.score.metadata_match import MetadataMatch, read_entries  # noqa: E402

_LIST = "metadata-substitute/metadata.json"


def shared_data() -> Path | None:
    """The shared data's folder, or None where it is not there."""
    folder = Path(os.environ.get("CLIP_PIPE_SHARED_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def entry_list(given: str, folder: Path) -> str:
    """Path of an entry list: the given one, the shared one unpacked, or a made one."""
    if given:
        return given
    path = folder / "entries.json"
    data = shared_data()
    if data is not None and (data / "metadata-prompts-wordnet.tar.gz").exists():
        with tarfile.open(data / "metadata-prompts-wordnet.tar.gz") as tar:
            member = tar.extractfile(_LIST)
            assert member is not None, _LIST
            path.write_bytes(member.read())
        return str(path)
    rng = random.Random(0)
    made = [f"word{n}" for n in range(300_000)]
    made += [f"word{_zipf(rng)} word{_zipf(rng)}" for _ in range(200_000)]
    path.write_text(json.dumps(list(dict.fromkeys(made))))
    return str(path)


def caption_list(given: str, rows: int) -> list[str]:
    """``rows`` captions, repeated where there are fewer."""
    data = shared_data()
    if given or (data is not None and (data / "captions-webalt.parquet").exists()):
        path = given or str(data) + "/captions-webalt.parquet"
        found = [
            text for text in pq.read_table(path, columns=["caption"])["caption"].to_pylist() if text
        ]
    else:
        rng = random.Random(1)
        found = [
            " ".join(f"word{_zipf(rng)}" for _ in range(rng.randint(3, 16))) for _ in range(20_000)
        ]
    return [found[n % len(found)] for n in range(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", default="", help="entry list (JSON or one per line)")
    parser.add_argument("--captions", default="", help="parquet file with a column `caption`")
    parser.add_argument("--rows", type=int, default=100_000, help="captions to match")
    arguments = parser.parse_args()
    captions = caption_list(arguments.captions, arguments.rows)
    table = pa.table({"caption": captions})
    with tempfile.TemporaryDirectory() as folder:
        stage = MetadataMatch(entries=entry_list(arguments.entries, Path(folder)))
        count = len(read_entries(stage.entries))
        before, started = _rss_mib(), time.process_time()
        matcher = stage.open()
        built_s, added_mib = time.process_time() - started, _rss_mib() - before
    best, matches = float("inf"), 0
    for _ in range(3):
        started, matches = time.process_time(), 0
        for start in range(0, len(table), stage.batch_rows):
            done = stage.process(table.slice(start, stage.batch_rows), matcher)
            matches += len(done["entries"].combine_chunks().flatten())
        best = min(best, time.process_time() - started)
    words = sum(map(len, captions)) / len(captions)
    print(
        "entries  captions  characters  matches/caption  build CPU-s  added RSS MiB  captions/CPU-s  peak RSS MiB"
    )
    print(
        f"{count:7d} {len(captions):9d} {words:11.1f} {matches / len(captions):16.2f} {built_s:12.2f} "
        f"{added_mib:14.0f} {len(captions) / best:15,.0f} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:13.0f}"
    )


def _zipf(rng: random.Random) -> int:
    return min(int(rng.paretovariate(0.6)), 399_999)


def _rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
