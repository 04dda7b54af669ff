"""Match and balance decide row for row as a plain reading of MetaCLIP's description does, on 100k captions.

The oracle below shares no code with the stages but the draw: text rule, counts, probability and
decision are written out again from arXiv 2309.16671 with strings and dicts.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curate.contract.draw import draw, pair_uid
from curate.filter.metadata_balance import MetadataBalance
from curate.score.metadata_match import MetadataMatch
from curate.stage import pool_state

ROWS = 100_000
SEED = 11


def spaced(text: str) -> str:
    """The text as the paper's code prepares it: marks stand alone, every entry between two spaces."""
    for mark in ",.;:?!`":
        text = text.replace(mark, " " + mark + " ")
    for space in "\t\n\r":
        text = text.replace(space, " ")
    return " " + text + " "


def by_substring(text: str, entries: list[str]) -> set[int]:
    """The rule by its letter."""
    padded = spaced(text)
    return {number for number, entry in enumerate(entries) if f" {entry} " in padded}


def by_runs(text: str, numbers: dict[str, int], longest: int) -> set[int]:
    """The same for long lists: an entry between two spaces is a run of whole words."""
    words = spaced(text)[1:-1].split(" ")
    found = set()
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            number = numbers.get(" ".join(words[start:end]))
            if number is not None:
                found.add(number)
    return found


def oracle(captions: list[str], uids: list[str], entries: list[str], t: int) -> list[str | None]:
    """What becomes of each caption: None if kept."""
    numbers = {entry: number for number, entry in enumerate(entries)}
    longest = max(entry.count(" ") + 1 for entry in entries)
    matched = [by_runs(caption, numbers, longest) for caption in captions]
    counts = Counter(number for found in matched for number in found)
    decided: list[str | None] = []
    for uid, found in zip(uids, matched, strict=True):
        if not found:
            decided.append("unmatched")
            continue
        all_coins_fail = 1.0
        for number in sorted(found):
            all_coins_fail *= 1 - (1 if counts[number] < t else t / counts[number])
        kept = 1 - all_coins_fail > draw(uid, f"balance:{SEED}")
        decided.append(None if kept else "balanced")
    return decided


def staged(
    captions: list[str], uids: list[str], entries: Path, t: int, rows_per_part: int
) -> list[str | None]:
    """The same from the two stages, part by part."""
    match, balance = MetadataMatch(entries=str(entries)), MetadataBalance(t=t, seed=SEED)
    table, opened = pa.table({"uid": uids, "caption": captions}), match.open()
    parts = []
    for start in range(0, len(table), rows_per_part):
        part = table.slice(start, rows_per_part)
        batches = [
            match.process(part.slice(row, match.batch_rows), opened)
            for row in range(0, len(part), match.batch_rows)
        ]
        parts.append(part.append_column("entries", pa.concat_tables(batches)["entries"]))
    state = pool_state(balance, lambda: parts)
    return [
        reason for part in parts for reason in balance.decide(part, state)["reason"].to_pylist()
    ]


def made_captions(rows: int, vocabulary: int) -> list[str]:
    """Words by Zipf's law, with marks, odd spaces and capitals between them; one in ten a file's name."""
    rng = random.Random(4)
    joints = rng.choices(
        [" ", ", ", "  ", ". ", "\t", ",", "-", "?", " `"], [80, 5, 3, 4, 2, 2, 2, 1, 1], k=997
    )
    captions = []
    for row in range(rows):
        words = (int(rng.paretovariate(0.7)) for _ in range(rng.randint(1, 9)))
        pieces = [f"{'W' if rng.random() < 0.03 else 'w'}{min(word, vocabulary)}" for word in words]
        caption = "".join(piece + joints[(row * 13 + at) % 997] for at, piece in enumerate(pieces))
        captions.append(caption if row % 10 else f"IMG_{row}_jpg")
    return captions


def made_entries(captions: list[str], vocabulary: int) -> list[str]:
    """Words, runs of two and three that do occur, marks, and some that never match."""
    rng = random.Random(5)
    entries = [f"w{word}" for word in range(1, vocabulary, 2)] + [
        ",",
        "?",
        "`",
        "St. Louis",
        "w2  w1",
    ]
    for caption in rng.sample(captions, 6000):
        words = spaced(caption).split()
        start, length = rng.randrange(len(words)), rng.choice([2, 2, 3])
        entries.append(" ".join(words[start : start + length]))
    return list(dict.fromkeys(entry for entry in entries if entry))


def uids_of(captions: list[str]) -> list[str]:
    return [pair_uid(f"http://host/{row}.jpg", caption) for row, caption in enumerate(captions)]


def test_the_oracle_s_two_readings_are_one() -> None:
    captions = made_captions(400, 60)
    entries = made_entries(made_captions(6000, 60), 60)
    numbers = {entry: number for number, entry in enumerate(entries)}
    found = [by_runs(caption, numbers, 3) for caption in captions]
    assert found == [by_substring(caption, entries) for caption in captions]
    assert sum(map(len, found)) > 1000


def test_made_captions_are_decided_as_the_oracle_does(tmp_path: Path) -> None:
    captions = made_captions(ROWS, 30_000)
    entries, uids = made_entries(captions, 30_000), uids_of(captions)
    (tmp_path / "entries.json").write_text(json.dumps(entries))
    expected = oracle(captions, uids, entries, t=40)
    for rows_per_part in (ROWS, ROWS // 7 + 1):
        assert staged(captions, uids, tmp_path / "entries.json", 40, rows_per_part) == expected
    shares = Counter(expected)
    assert min(shares[None], shares["balanced"], shares["unmatched"]) > ROWS // 20


def test_real_captions_are_decided_as_the_oracle_does(tmp_path: Path, shared_data: Path) -> None:
    """Alt-texts of the web and image titles, against a list of 328,078 entries."""
    captions = [
        caption
        for name in ("captions-webalt.parquet", "captions-tate.parquet")
        if (shared_data / name).is_file()
        for caption in real_captions(shared_data / name)
    ]
    with tarfile.open(shared_data / "metadata-prompts-wordnet.tar.gz") as tar:
        member = tar.extractfile("metadata-substitute/metadata.json")
        assert member is not None
        text = member.read()
    entries, uids = json.load(io.BytesIO(text)), uids_of(captions)
    (tmp_path / "entries.json.gz").write_bytes(gzip.compress(text, 1))
    expected = oracle(captions, uids, entries, t=25)
    assert staged(captions, uids, tmp_path / "entries.json.gz", 25, 9_999) == expected
    assert {None, "balanced", "unmatched"} == set(expected)


def real_captions(path: Path) -> list[str]:
    names = pq.read_schema(path).names
    column = "caption" if "caption" in names else "title"
    return [text for text in pq.read_table(path, columns=[column])[column].to_pylist() if text]
