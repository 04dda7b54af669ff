"""Recall and cost of semantic duplicates beside brute force; caption embeddings per CPU-second.

    python tests/bench/semantic_duplicates.py            # recall
    python tests/bench/semantic_duplicates.py --text     # rates of the caption encoder

Two pools of unit vectors with planted pairs at cosines of 0.90 to 0.99: `clustered` (groups of similar
vectors, as real embeddings have) and `structureless` (uniform on the sphere, the worst case for
k-means). The whole journey is timed: score.clusters (fit, assign) and filter.semantic_duplicate. `pairs`
is the share of all pairs above the threshold that were compared; `rows` the share of rows that brute
force and the same grouping refuse that were refused. Everything on one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from curate.filter import linked  # noqa: E402
from curate.filter.semantic_duplicate import SemanticDuplicate  # noqa: E402
from curate.score import vectors  # noqa: E402
from curate.score.clusters import Clusters  # noqa: E402
from curate.stage import pool_state  # noqa: E402

PART_ROWS = 10_000


def planted(kind: str, rows: int, dim: int, seed: int) -> np.ndarray:
    """float16 (rows, dim), unit norm; one row in ten is a copy of another at a cosine of 0.90 to 0.99."""
    rng = np.random.default_rng(seed)
    copies = rows // 10
    made = rng.normal(size=(rows - copies, dim)).astype(np.float32)
    if kind == "clustered":
        centres = rng.normal(size=(max(2, rows // 500), dim)).astype(np.float32)
        made = 1.5 * centres[rng.integers(0, len(centres), len(made))] + made
    made = unit(made)
    of = made[rng.choice(len(made), copies, replace=False)]
    aside = rng.normal(size=of.shape).astype(np.float32)
    aside = unit(aside - (aside * of).sum(1, keepdims=True) * of)
    cosine = rng.uniform(0.90, 0.99, (copies, 1)).astype(np.float32)
    whole = np.concatenate([made, cosine * of + np.sqrt(1 - cosine**2) * aside])
    return unit(whole[rng.permutation(rows)]).astype(np.float16)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute_force(found: np.ndarray, similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs above a cosine."""
    rows = unit(found.astype(np.float32))
    left, right = [], []
    for top in range(0, len(rows), 2048):
        for start in range(top, len(rows), 8192):
            a, b = np.nonzero(rows[top : top + 2048] @ rows[start : start + 8192].T > similarity)
            a, b = a + top, b + start
            left.append(a[a < b])
            right.append(b[a < b])
    return np.concatenate(left), np.concatenate(right)


def as_parts(found: np.ndarray) -> list[pa.Table]:
    """The pool in parts of PART_ROWS rows."""
    whole = pa.table(
        {
            "uid": pa.array([f"{n:032x}" for n in range(len(found))]),
            "part": pa.array(np.arange(len(found)) // PART_ROWS),
            "row": pa.array(np.arange(len(found)) % PART_ROWS),
            "embedding_image": vectors.to_column(found, found.shape[1]),
        }
    )
    return [whole.slice(start, PART_ROWS) for start in range(0, len(found), PART_ROWS)]


def journey(
    parts: list[pa.Table], stage: Clusters, similarity: float, centroids: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """(clusters (rows, centroids), refused (rows,), CPU-seconds of fit, assign and compare)."""
    marks = [time.process_time()]
    state = pool_state(stage, lambda: parts)
    marks.append(time.process_time())
    given = []
    for part in parts:
        near = np.stack(stage.decide(part, state)["clusters"].to_numpy())[:, :centroids]
        lists = pa.array(list(near), pa.list_(pa.int32()))
        given.append(part.append_column("clusters", lists))
    marks.append(time.process_time())
    filtering = SemanticDuplicate(similarity=similarity)
    copies = pool_state(filtering, lambda: given)
    keep = pa.concat_tables([filtering.decide(part, copies).select(["keep"]) for part in given])
    marks.append(time.process_time())
    near = np.concatenate([np.stack(part["clusters"].to_numpy()) for part in given])
    return near, ~keep["keep"].to_numpy(), np.diff(marks).tolist()


def recall(options: argparse.Namespace) -> None:
    print(
        "| pool | k-means | centroids | pairs | rows | wrong rows | CPU-s fit + assign + compare |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in ("clustered", "structureless"):
        found = planted(kind, options.rows, options.dim, options.seed)
        started = time.process_time()
        left, right = brute_force(found, options.similarity)
        spent_s = time.process_time() - started
        label = linked.groups(len(found), left, right)
        first = np.unique(label, return_index=True)[1][label]
        wanted = first != np.arange(len(found))
        print(f"| {kind} | brute force | | {len(left)} | {wanted.sum()} | | {spent_s:.1f} |")
        parts = as_parts(found)
        for clusters in options.clusters:
            stage = Clusters(clusters=clusters, sample=options.sample)
            for centroids in (1, 2):
                near, refused, seconds = journey(parts, stage, options.similarity, centroids)
                met = (near[left][:, :, None] == near[right][:, None, :]).any(axis=(1, 2))
                rows = (refused & wanted).sum() / wanted.sum()
                times = " + ".join(f"{one:.1f}" for one in seconds)
                print(
                    f"| {kind} | {clusters} | {centroids} | {met.mean():.3f} | {rows:.3f} "
                    f"| {(refused & ~wanted).sum()} | {times} = {sum(seconds):.1f} |",
                    flush=True,
                )


def captions(count: int) -> Iterator[str]:
    """Real alt-texts where the shared data is, else texts of 4 to 24 made-up words."""
    shared = os.environ.get("CLIP_PIPE_SHARED_DATA") or ROOT.parent / "shared" / "data"
    path = Path(shared) / "captions-webalt.parquet"
    if path.exists():
        import pyarrow.parquet as pq

        yield from pq.read_table(path, columns=["caption"])["caption"].to_pylist()[:count]
        return
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(5000)]
    for _ in range(count):
        yield " ".join(rng.choice(words, rng.integers(4, 25)))


def text(options: argparse.Namespace) -> None:
    from curate.score.inference import one_thread
    from curate.score.text_embedding import TextEmbedding

    stage = TextEmbedding(device="cpu")
    stage.check()
    model = stage.open()
    texts = list(captions(options.texts))
    table = pa.table({"caption": texts})
    print(
        f"{len(texts)} captions, {np.mean([len(one.split()) for one in texts]):.1f} words on average"
    )
    print("| encoder | captions per CPU-second |\n|---|---|")
    for name in ("score.text_embedding", "encode, 32 a batch"):
        started = time.process_time()
        if name.startswith("score"):
            for start in range(0, len(texts), stage.batch_rows):
                stage.process(table.slice(start, stage.batch_rows), model)
        else:
            with one_thread():
                model.encode(texts, batch_size=32, normalize_embeddings=True)
        print(f"| {name} | {len(texts) / (time.process_time() - started):.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--similarity", type=float, default=0.95)
    parser.add_argument("--clusters", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--sample", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", action="store_true", help="rates of the caption encoder instead")
    parser.add_argument("--texts", type=int, default=4096)
    options = parser.parse_args()
    (text if options.text else recall)(options)


if __name__ == "__main__":
    main()
