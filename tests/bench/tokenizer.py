"""Captions per CPU second: our tokenizer beside open_clip's own, which gives the same ids.

    .venv/bin/python -m tests.bench.tokenizer
    .venv/bin/python -m tests.bench.tokenizer --captions 200000 --generated

Contenders take turns over the same batches, and CPU seconds of the process are counted. "new words"
is the first pass of a fresh tokenizer, whose cache is empty (open_clip has one of words, too); "running"
is the passes after it, as in a run that has gone on for a while.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

import torch

from pretrain.model.encoder import import_open_clip
from pretrain.model.tokens import SafeTokenizer

ROWS = 256


def real(count: int) -> list[str]:
    """Alt-texts of web pictures from the shared data; none where that is absent."""
    import pyarrow.parquet as pq

    folder = Path(os.environ.get("CLIP_PIPE_SHARED_DATA", "../shared/data"))
    path = folder / "captions-webalt.parquet"
    if not path.is_file():
        return []
    return [text for text in pq.read_table(path)["caption"].to_pylist() if text][:count]


def generated(count: int) -> list[str]:
    """Captions of words whose frequency falls with their rank, a few with punctuation or accents."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 9))) for _ in range(30_000)
    ]
    words = [
        word if draw.random() < 0.93 else draw.choice([f"{word},", f"é{word}"]) for word in words
    ]
    weights = [1 / (rank + 5) for rank in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=draw.randint(3, 20))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument(
        "--generated", action="store_true", help="captions made here, also if real ones are there"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = [] if options.generated else real(options.captions)
    kind = "real alt-texts" if texts else "generated captions"
    texts = texts or generated(options.captions)
    batches = [texts[at : at + ROWS] for at in range(0, len(texts), ROWS)]

    build = import_open_clip().tokenizer.SimpleTokenizer
    contenders = {"open_clip": build(), "clip-pipe": SafeTokenizer(build())}
    for contender in contenders.values():
        contender(["caf\u00e9"])  # imports and compiles what it does once
    spent_s = {name: [0.0] * options.passes for name in contenders}
    differing = 0
    for number in range(options.passes):
        for batch in batches:
            found = []
            for name, contender in contenders.items():
                began_s = time.process_time()
                found.append(contender(batch))
                spent_s[name][number] += time.process_time() - began_s
            differing += int((found[0] != found[1]).any(1).sum())

    print(f"{len(texts):,} {kind}, {differing} with other ids")
    print(f"{'':12}{'new words':>14}{'running':>14}   captions per CPU second")
    rates = {}
    for name, seconds in spent_s.items():
        rates[name] = (
            len(texts) / seconds[0],
            len(texts) / (min(seconds[1:]) if seconds[1:] else seconds[0]),
        )
        print(f"{name:12}{rates[name][0]:14,.0f}{rates[name][1]:14,.0f}")
    ratios = [
        ours / theirs for ours, theirs in zip(rates["clip-pipe"], rates["open_clip"], strict=True)
    ]
    print(f"{'ratio':12}{ratios[0]:14.1f}{ratios[1]:14.1f}")


if __name__ == "__main__":
    main()
