"""What is refused is what brute force and the same grouping refuse, for any cut and any cluster size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.filter import semantic_duplicate
from curate.filter.semantic_duplicate import SemanticDuplicate
from curate.score import vectors
from curate.score.clusters import Clusters
from curate.stage import pool_state
from pipelines import curation
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import Quiet, ledger
from tests.tiny.pictures import encoded

DIM = 8


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def vectors_in_groups(rows: int, seed: int, spread: float = 0.12) -> np.ndarray:
    """float16 (rows, DIM) around a few points, some of them equal: near and far pairs, and chains."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, rows // 4), DIM))
    made = centres[rng.integers(0, len(centres), rows)]
    made = made + rng.normal(size=made.shape) * spread * rng.integers(0, 2, (rows, 1))
    return unit(made)


def pool(found: np.ndarray, clusters: list[list[int] | None] | None = None) -> pa.Table:
    rows = len(found)
    rng = np.random.default_rng(1)
    return pa.table(
        {
            "uid": [hashlib.sha256(str(n).encode()).hexdigest()[:32] for n in range(rows)],
            "part": pa.array(np.arange(rows) // 10),
            "row": pa.array(np.arange(rows) % 10),
            "embedding_image": vectors.to_column(found, DIM),
            "clusters": pa.array(clusters or [[0]] * rows, pa.list_(pa.int32())),
            "original_width": pa.array(rng.integers(1, 5, rows), pa.int32()),
            "original_height": pa.array(np.ones(rows), pa.int32()),
        }
    )


def outcome(stage: SemanticDuplicate, tables: list[pa.Table]) -> list[str | None]:
    """For each row the uid of the one that stays in its stead, or None where it is kept."""
    stage.check()
    state = pool_state(stage, lambda: tables)
    done = pa.concat_tables([stage.decide(table, state) for table in tables])
    assert done.schema.names == stage.writes().names
    of = done["semantic_duplicate_of"].to_pylist()
    assert done["keep"].to_pylist() == [one is None for one in of]
    assert done["reason"].to_pylist() == [one and "semantic_duplicate" for one in of]
    return of


def expected(
    table: pa.Table, similarity: float, ranks: list[float] | None = None
) -> list[str | None]:
    """The same in plain loops: exact cosines of all pairs that share a cluster, then groups."""
    found, usable = vectors.from_column(table["embedding_image"])
    sets = [set(row or ()) for row in table["clusters"].to_pylist()]
    wide = found.astype(np.float64)
    group = list(range(len(table)))
    for a in range(len(table)):
        for b in range(a + 1, len(table)):
            if not (usable[a] and usable[b] and sets[a] & sets[b]):
                continue
            cosine = wide[a] @ wide[b] / np.sqrt((wide[a] @ wide[a]) * (wide[b] @ wide[b]))
            if cosine > similarity and group[a] != group[b]:
                group = [group[a] if one == group[b] else one for one in group]
    uids = table["uid"].to_pylist()
    order = ranks or [0.0] * len(table)
    best = {
        one: min((order[n], n) for n in range(len(group)) if group[n] == one)[1]
        for one in set(group)
    }
    return [None if best[one] == n else uids[best[one]] for n, one in enumerate(group)]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 60),
    seed=st.integers(0, 999),
    similarity=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
    clusters=st.integers(1, 4),
    count=st.integers(1, 9),
)
def test_it_is_brute_force_within_shared_clusters(
    rows: int, seed: int, similarity: float, clusters: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    near: list[Any] = [rng.permutation(clusters)[:2].tolist() for _ in range(rows)]
    near = [None if one % 9 == 8 else row for one, row in zip(range(rows), near, strict=True)]
    table = pool(vectors_in_groups(rows, seed), near)
    size = max(1, -(-rows // count))
    tables = [table.slice(start, size) for start in range(0, max(rows, 1), size)]
    stage = SemanticDuplicate(similarity=similarity)
    assert outcome(stage, tables) == expected(table, similarity)


def test_blocks_and_forests_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pool(vectors_in_groups(300, 3))
    whole = outcome(SemanticDuplicate(similarity=0.9), [table])
    assert 100 < sum(one is not None for one in whole) < 295
    monkeypatch.setattr(semantic_duplicate, "_BLOCK", (7, 11))
    monkeypatch.setattr(semantic_duplicate, "_PAIRS", 5)
    monkeypatch.setattr(semantic_duplicate, "_VERIFY_ROWS", 3)
    assert outcome(SemanticDuplicate(similarity=0.9), [table]) == whole


def test_buckets_merged_in_any_order_decide_alike() -> None:
    table = pool(vectors_in_groups(90, 5), [[n % 3, 3 + n % 2] for n in range(90)])
    stage = SemanticDuplicate(similarity=0.9)
    partials = [stage.summarize(table.slice(start, 10)) for start in range(0, 90, 10)]
    closed = []
    for keys in ((0, 4), (1,), (2, 3)):
        wanted = pa.array(keys, pa.int32())
        chosen = [one.filter(pa.compute.is_in(one["key"], wanted)) for one in reversed(partials)]
        closed.append(stage.close(stage.merge([stage.merge(chosen[:4]), stage.merge(chosen[4:])])))
    state = stage.settle(closed[::-1])
    assert stage.decide(table, state)["semantic_duplicate_of"].to_pylist() == outcome(
        stage, [table]
    )


def test_a_cosine_next_to_the_bound_is_decided_exactly() -> None:
    found = unit(np.array([[1.0, 0, 0, 0, 0, 0, 0, 0], [0.95, 0.3122, 0, 0, 0, 0, 0, 0]]))
    cosine = float(vectors.cosines(found[:1], found[1:])[0])
    table = pool(found)
    for bound, copies in ((cosine, 0), (np.nextafter(cosine, 0), 1), (np.nextafter(cosine, 1), 0)):
        refused = outcome(SemanticDuplicate(similarity=float(bound)), [table])
        assert sum(one is not None for one in refused) == copies


def test_the_largest_copy_can_stay() -> None:
    table = pool(vectors_in_groups(60, 7))
    stage = SemanticDuplicate(similarity=0.9, prefer="largest")
    assert set(stage.reads()) >= {"original_width", "original_height"}
    ranks = [-float(width) for width in table["original_width"].to_pylist()]
    found = outcome(stage, [table])
    assert found == expected(table, 0.9, ranks)
    assert found != outcome(SemanticDuplicate(similarity=0.9), [table])
    ratio = table["original_width"].cast(pa.float32())  # one pixel high, so many wide
    own = table.drop_columns(["original_width", "original_height"])
    own = own.append_column("min_side_px", table["original_height"])
    own = own.append_column("aspect_ratio", ratio)
    assert outcome(SemanticDuplicate(similarity=0.9, prefer="largest_stored"), [own]) == found


def test_rows_without_an_embedding_or_a_cluster_are_kept() -> None:
    found = np.repeat(unit(np.ones((1, DIM))), 6, axis=0).astype(np.float32)
    found[0] = np.nan
    found[1] = 0
    table = pool(found, [[0], [0], None, [], [0], [0]])
    uids = table["uid"].to_pylist()
    assert outcome(SemanticDuplicate(), [table]) == [None, None, None, None, None, uids[4]]


def test_a_flood_of_copies_is_one_group_and_costs_little() -> None:
    rng = np.random.default_rng(0)
    equal = np.repeat(unit(rng.normal(size=(1, DIM))), 30_000, axis=0)
    flood = unit(equal[:3000] + rng.normal(size=(3000, DIM)) * 0.02)
    table = pool(np.concatenate([equal, flood]))
    found = outcome(SemanticDuplicate(max_cluster_rows=1000), [table])
    assert found[0] is None
    assert found[1:] == [table["uid"][0].as_py()] * (len(found) - 1)


def test_an_oversized_cluster_is_split_and_still_finds_most() -> None:
    rng = np.random.default_rng(2)
    made = rng.normal(size=(2000, DIM))
    copies = made + rng.normal(size=made.shape) * 0.04
    table = pool(unit(np.concatenate([made, copies])))
    whole = outcome(SemanticDuplicate(similarity=0.99), [table])
    split = outcome(SemanticDuplicate(similarity=0.99, max_cluster_rows=400), [table])
    refused = sum(one is not None for one in whole)
    assert refused > 1500
    assert sum(a is not None for a, b in zip(split, whole, strict=True) if b) > 0.95 * refused
    assert not any(a for a, b in zip(split, whole, strict=True) if b is None)
    shuffled = table.take(pa.array(rng.permutation(len(table))))
    again = dict(
        zip(
            shuffled["uid"].to_pylist(),
            outcome(SemanticDuplicate(similarity=0.99, max_cluster_rows=400), [shuffled]),
            strict=True,
        )
    )
    assert [again[uid] for uid in table["uid"].to_pylist()] == split, (
        "order in the bucket is of no account"
    )


def test_a_split_cluster_knows_no_order_of_its_parts() -> None:
    """Of equal embeddings one stands for all, and which one draws the splitting."""
    rng = np.random.default_rng(0)
    made = unit(rng.normal(size=(300, DIM)))
    near = made + rng.normal(size=made.shape) * 0.09
    table = pool(np.concatenate([made, made, unit(near)]))
    stage = SemanticDuplicate(similarity=0.93, max_cluster_rows=120)
    partials = [stage.summarize(table.slice(start, 100)) for start in range(0, 900, 100)]
    states = []
    for _ in range(5):
        state = stage.settle([stage.close(stage.merge(partials))])
        states.append(state.sort_by([("part", "ascending"), ("row", "ascending")]).to_pylist())
        rng.shuffle(partials)  # type: ignore[arg-type]
    assert len(states[0]) > 300
    assert all(state == states[0] for state in states)


def test_after_clusters_near_copies_are_found() -> None:
    rng = np.random.default_rng(4)
    made = rng.normal(size=(400, DIM))
    found = unit(np.concatenate([made, made + rng.normal(size=made.shape) * 0.01]))
    whole = pool(found)
    table = whole.drop_columns(["clusters"])
    grouping = Clusters(clusters=10)
    state = pool_state(grouping, lambda: [table])
    table = table.append_column("clusters", grouping.decide(table, state)["clusters"])
    refused = outcome(SemanticDuplicate(similarity=0.99), [table])
    wanted = expected(whole, 0.99)
    assert sum(one is not None for one in refused) >= 0.97 * sum(one is not None for one in wanted)


def test_options_and_columns_that_cannot_work_are_named() -> None:
    for similarity in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="hint: a cosine between 0 and 1"):
            SemanticDuplicate(similarity=similarity).check()
    with pytest.raises(ValueError, match="max_cluster_rows = 5"):
        SemanticDuplicate(max_cluster_rows=5).check()
    kinds = {"embedding_image": vectors.column_type(4), "clusters": pa.list_(pa.int32())}
    SemanticDuplicate().check_columns(kinds)
    with pytest.raises(ValueError, match="no embeddings"):
        SemanticDuplicate().check_columns({**kinds, "embedding_image": pa.string()})
    with pytest.raises(ValueError, match=r"name the column of score\.clusters"):
        SemanticDuplicate().check_columns({**kinds, "clusters": pa.string()})
    other = SemanticDuplicate(embedding="embedding_text", clusters="c", column="like")
    assert other.reads()[:2] == ("embedding_text", "c")
    assert other.writes().names == ["like", "keep", "reason"]


def test_a_whole_run_decides_alike_for_any_parts_and_buckets(
    tmp_path: Path, curate_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From pictures in files to decisions: embedding, clusters, copies, and a score beside them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for n in range(30):
        pixels = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        copies = {f"{n:02d}": encoded(pixels)}
        if n % 5 == 0:
            copies[f"copy-{n:02d}"] = encoded(pixels, "JPEG", quality=100, subsampling=0)
        for name, data in copies.items():
            (photos / f"{name}.{'jpg' if 'copy' in name else 'png'}").write_bytes(data)
            (photos / f"{name}.txt").write_text(f"a red circle {name}")
    np.savez(tmp_path / "head.npz", weight=np.ones(48))
    stages = [
        {"use": "tests.tiny.stages:Blocks"},
        {"use": "score.aesthetic", "weights": str(tmp_path / "head.npz")},
        {"use": "score.clusters", "clusters": 4},
        {"use": "filter.semantic_duplicate", "similarity": 0.9999},
    ]
    ledgers = []
    for rows_per_part, bucket_rows in ((100, 1000), (7, 5)):
        monkeypatch.setattr(SemanticDuplicate, "bucket_rows", bucket_rows)
        source = {"use": "source.folder", "path": str(photos), "rows_per_part": rows_per_part}
        recipe = curate_recipe(source, stages, folder=f"parts-{rows_per_part}")
        curation.run(plan_curation(recipe), LocalRunner(), Quiet())
        ledgers.append(ledger(recipe))
    rows = {Path(row["url"]).stem: row["reason"] for row in ledgers[0]}
    assert {name for name, reason in rows.items() if reason == "semantic_duplicate"} == {
        f"copy-{n:02d}" for n in range(0, 30, 5)
    }
    assert ledgers[0] == ledgers[1]
