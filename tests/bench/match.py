"""Captions per CPU-second and memory of the entry matcher, beside other ways to the same ids.

    python tests/bench/match.py [--entries FILE] [--captions FILE] [--rows N] [--size N ...] [--rule RULE]

Each matcher runs in a fresh process: it reads the list, builds, and turns an Arrow column of captions
into an Arrow column of sorted ids, in batches of the stage's size. `naive` is the rule to the letter and
sees the first captions only. Every output must have the same md5. pyahocorasick (overlapping matches,
STORE_INTS) and ahocorasick_rs are measured where they are installed.

Without files it takes the shared data where it is there (a list of 328,078 entries, topped up to --size
with the most frequent runs of two and three words of its captions, and real captions), else it makes a
Zipf-distributed vocabulary, entries and captions. For the rule `worldwide` they are always made: a script
without spaces.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from curate.score.metadata_match import Matcher, MetadataMatch, read_entries  # noqa: E402
from curate.score.worldwide import LanguageMatcher, needs_no_space  # noqa: E402

_LIST = "metadata-substitute/metadata.json"
_TEXTS = {"captions-webalt": "caption", "captions-text": "caption", "captions-tate": "title"}
_NEEDS = {"pyahocorasick": "ahocorasick", "ahocorasick_rs": "ahocorasick_rs"}
_NAIVE_ROWS = 50
_REPEATS = 3


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


def sized(path: str, size: int, captions: list[str]) -> str:
    """A list of ``size`` entries: the first of ``path``, and then frequent runs of words of the captions."""
    entries = list(dict.fromkeys(read_entries(path)))[:size]
    runs: Counter[str] = Counter()
    for text in captions if len(entries) < size else []:
        words = text.split()
        for n in (2, 3):
            runs.update(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
    known = set(entries)
    entries += [run for run, _ in runs.most_common() if run not in known][: size - len(entries)]
    made = Path(path).with_name(f"entries-{size}.json")
    made.write_text(json.dumps(entries))
    return str(made)


def caption_list(given: str, rows: int) -> list[str]:
    """``rows`` captions, repeated where there are fewer; 0 for all there are, each once."""
    data = shared_data()
    found: list[str] = []
    if given:
        found = _column(Path(given), "caption")
    elif data is not None:
        for name, column in _TEXTS.items():
            if (data / f"{name}.parquet").exists():
                found += _column(data / f"{name}.parquet", column)
        random.Random(0).shuffle(found)
    if not found:
        rng = random.Random(1)
        found = [
            " ".join(f"word{_zipf(rng)}" for _ in range(rng.randint(3, 16)))
            for _ in range(rows or 100_000)
        ]
    return [found[n % len(found)] for n in range(rows or len(found))]


def _column(path: Path, name: str) -> list[str]:
    return [text for text in pq.read_table(path, columns=[name])[name].to_pylist() if text]


Match = Callable[[pa.Array], pa.ListArray]


def ours(entries: list[str], rule: str) -> Match:
    return (Matcher if rule == "spaced" else LanguageMatcher)(entries).match_all


def naive(entries: list[str], rule: str) -> Match:
    patterns = _patterns(entries, rule).items()

    def ids(text: str) -> list[int]:
        return [number for pattern, number in patterns if pattern in text]

    return _one_by_one(ids)


def pyahocorasick(entries: list[str], rule: str) -> Match:
    import ahocorasick

    automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
    for pattern, number in _patterns(entries, rule).items():
        automaton.add_word(pattern, number)
    automaton.make_automaton()
    return _one_by_one(lambda text: {number for _, number in automaton.iter(text)})


def ahocorasick_rs(entries: list[str], rule: str) -> Match:
    import ahocorasick_rs as library

    patterns = _patterns(entries, rule)
    automaton = library.AhoCorasick(list(patterns))
    numbers = list(patterns.values())
    return _one_by_one(
        lambda text: {
            numbers[n] for n, _, _ in automaton.find_matches_as_indexes(text, overlapping=True)
        }
    )


def _patterns(entries: list[str], rule: str) -> dict[str, int]:
    """What is looked for in a prepared caption -> the entry's id; the first of equal entries counts."""

    def space(character: str) -> str:
        return "" if rule == "worldwide" and needs_no_space(character) else " "

    numbered = reversed(list(enumerate(entries)))
    return {f"{space(e[0])}{e}{space(e[-1])}": number for number, e in numbered if e}


def _one_by_one(ids: Callable[[str], Any]) -> Match:
    """Each caption prepared by the rule, matched and sorted, the results as an Arrow column."""
    marks = [(mark, f" {mark} ") for mark in ",.;:?!`"] + [(space, " ") for space in "\t\n\r"]

    def prepared(text: str) -> str:
        text = f" {text} "
        for old, new in marks:
            if old in text:
                text = text.replace(old, new)
        return text

    def match(captions: pa.Array) -> pa.ListArray:
        found = [sorted(ids(prepared(text))) for text in captions.to_pylist()]
        return pa.array(found, pa.list_(pa.int32()))

    return match


MATCHERS = {
    "naive": naive,
    "pyahocorasick": pyahocorasick,
    "ahocorasick_rs": ahocorasick_rs,
    "clip-pipe": ours,
}


def measure(name: str, rule: str, entries: str, captions: str) -> dict[str, Any]:
    """One matcher in this process, over the captions of a parquet file."""
    column = pq.read_table(captions)["caption"].combine_chunks()
    column = column.slice(0, _NAIVE_ROWS) if name == "naive" else column
    if name in _NEEDS:
        importlib.import_module(_NEEDS[name])
    before = _memory_mib("VmRSS")
    made = read_entries(entries)
    started = time.process_time()
    match = MATCHERS[name](made, rule)
    built_s = time.process_time() - started
    del made
    step, best_s = MetadataMatch.batch_rows, float("inf")
    for _ in range(1 if name == "naive" else _REPEATS):
        started = time.process_time()
        found = [match(column.slice(at, step)) for at in range(0, len(column), step)]
        best_s = min(best_s, time.process_time() - started)
    whole = pa.concat_arrays(found)
    return {
        "built_s": built_s,
        "added_mib": _memory_mib("VmRSS") - before - whole.nbytes / 2**20,
        "peak_mib": _memory_mib("VmHWM") - before,
        "rate": len(column) / best_s,
        "matches": len(whole.flatten()) / len(column),
        "md5": _md5(whole),
        "md5_first": _md5(whole.slice(0, _NAIVE_ROWS)),
    }


def _md5(found: pa.ListArray) -> str:
    return hashlib.md5(json.dumps(found.to_pylist()).encode()).hexdigest()


def table(entries: str, rule: str, captions: list[str], folder: Path) -> None:
    """Measure every matcher that is there and print a row for each."""
    path = folder / "captions.parquet"
    pq.write_table(pa.table({"caption": captions}), path)
    print(
        f"\n{rule}: {len(read_entries(entries)):,} entries, {len(captions):,} captions of {sum(map(len, captions)) / len(captions):.1f} characters"
    )
    print(
        "matcher         build CPU-s  added MiB  peak MiB  captions/CPU-s  of pyahocorasick  matches  md5"
    )
    done: dict[str, dict[str, Any]] = {}
    for name in MATCHERS:
        if name in _NEEDS and importlib.util.find_spec(_NEEDS[name]) is None:
            print(f"{name:15s} not installed, so not measured. hint: pip install {name}")
            continue
        command = [sys.executable, __file__, "--one", name, "--rule", rule]
        command += ["--entries", entries, "--captions", str(path)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise SystemExit(f"{name} failed:\n{told.stderr}")
        got = done[name] = json.loads(told.stdout)
        base = done.get("pyahocorasick", {}).get("rate")
        ratio = f"{got['rate'] / base:.2f}" if base else "-"
        print(
            f"{name:15s} {got['built_s']:11.2f} {got['added_mib']:10.0f} {got['peak_mib']:9.0f} "
            f"{got['rate']:15,.0f} {ratio:>17s} {got['matches']:8.2f}  {got['md5']}"
        )
    if len({got["md5"] for name, got in done.items() if name != "naive"}) > 1:
        raise SystemExit("the matchers' outputs differ")
    if len({got["md5_first"] for got in done.values()}) > 1:
        raise SystemExit(f"outputs differ from the rule to the letter in the first {_NAIVE_ROWS}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", default="", help="entry list (JSON or one per line)")
    parser.add_argument("--captions", default="", help="parquet file with a column `caption`")
    parser.add_argument("--rows", type=int, default=100_000, help="captions to match; 0 for all")
    parser.add_argument("--size", type=int, nargs="*", help="entries; default 328078 and 500000")
    parser.add_argument("--rule", default="", choices=["spaced", "worldwide"], help="default both")
    parser.add_argument("--one", default="", choices=["", *MATCHERS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.rule, given.entries, given.captions)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.rule != "worldwide":
            captions = caption_list(given.captions, given.rows)
            every = captions if given.entries else caption_list(given.captions, 0)
            path = entry_list(given.entries, folder)
            sizes = [] if given.entries else given.size or [328_078, 500_000]
            for entries in [sized(path, size, every) for size in sizes] or [path]:
                table(entries, "spaced", captions, folder)
        if given.rule != "spaced":
            table(*unspaced(folder, given.rows), folder)


def unspaced(folder: Path, rows: int) -> tuple[str, str, list[str]]:
    """A made list of 300,000 entries and captions of a script without spaces, kana and Latin among it."""
    rng = random.Random(2)
    letters = [*map(chr, range(0x30A1, 0x30F7)), *map(chr, range(0x4E00, 0x5600))]
    rng.shuffle(letters)

    def word(low: int, high: int) -> str:
        return "".join(
            letters[min(int(rng.paretovariate(0.7)), len(letters)) - 1]
            for _ in range(rng.randint(low, high))
        )

    made = dict.fromkeys(word(1, 4) for _ in range(1_500_000))
    entries = [*list(made)[:290_000], *(f"word{n}" for n in range(10_000))]
    path = folder / "entries-ja.json"
    path.write_text(json.dumps(entries))
    captions = [
        f"{word(8, 30)} word{_zipf(rng)}, {word(1, 9)}" if n % 4 == 0 else word(10, 40)
        for n in range(rows or 100_000)
    ]
    return str(path), "worldwide", captions


def _zipf(rng: random.Random) -> int:
    return min(int(rng.paretovariate(0.6)), 399_999)


def _memory_mib(kind: str) -> float:
    """VmRSS, the memory held now, or VmHWM, the most that was held since the process began."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    main()
