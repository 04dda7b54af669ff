"""Rows are found by uid; a curation decision trains without new shards; what can't be joined is refused."""

import numpy as np
import pyarrow as pa
import pytest

from curate.contract import storage
from pipelines import curation
from pipelines.plan import plan_curation
from pipelines.progress import Progress
from pipelines.run_local import LocalRunner
from pretrain.loop.settings import Sidecar
from pretrain.stream import sidecar_rows
from pretrain.stream.sidecar import Table
from pretrain.stream.tars import TarSet
from tests.pretrain.stream.test_sidecar_rows import UIDS, digests_of, table, write
from tests.tiny import scenes


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_PIPE_CACHE", str(tmp_path / "cache"))


def test_rows_are_found_by_uid_and_by_nothing_else(tmp_path):
    close = [UIDS[0][:16] + "0" * 16, UIDS[0][:16] + "f" * 16]  # the same first half
    there = [*UIDS, *close, "plain key", ""]
    texts = [f"about {key}" for key in there]
    found = table(write(tmp_path / "a.parquet", uid=there[::-1], caption=texts[::-1]), "caption")
    asked = [*there, UIDS[0][:16] + "a" * 16, UIDS[1].upper(), "Plain key", "0" * 32, "f" * 32]
    rows = found.find(digests_of(asked))
    assert [found.texts(row)[0] for row in rows[: len(there)].tolist()] == texts
    assert rows[len(there) :].tolist() == [-1] * 5


def test_large_tables_are_sorted_by_buckets_and_mapped(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", uid=UIDS, captions=[[f"a{n}", "b"] for n in range(39)])
    small = table(path, "captions")
    monkeypatch.setattr("pretrain.stream.sidecar._SMALL_BYTES", 0)
    monkeypatch.setattr(sidecar_rows, "_ROWS_AT_ONCE", 0)
    large = Table(Sidecar(path=path, use="captions"), str(tmp_path / "cache"))
    assert isinstance(large.found["high"], np.memmap)
    assert large.fingerprint == small.fingerprint
    rows = large.find(digests_of(UIDS)).tolist()
    assert [large.texts(row) for row in rows] == [[f"a{n}", "b"] for n in range(39)]
    left = [
        p.name for p in (tmp_path / "cache" / "sidecar").iterdir() if storage.TEMPORARY in p.name
    ]
    assert left == []
    # The next process finds it made.
    monkeypatch.setattr(Table, "_make", None)
    assert (
        Table(Sidecar(path=path, use="captions"), str(tmp_path / "cache")).fingerprint
        == small.fingerprint
    )


def test_equal_rows_have_one_fingerprint_however_they_lie(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "part-00000.parquet", uid=UIDS[20:], keep=[True] * 19)
    write(tmp_path / "parts" / "part-00001.parquet", uid=UIDS[:20], keep=[False] * 20)
    write(tmp_path / "parts" / "state.parquet", entry=[1])  # a stage's state is no part
    whole = table(write(tmp_path / "a.parquet", uid=UIDS, keep=[False] * 20 + [True] * 19), "keep")
    parts = table(str(tmp_path / "parts"), "keep")
    assert whole.fingerprint == parts.fingerprint
    assert (
        whole.fingerprint == table(str(tmp_path / "parts" / "part-*.parquet"), "keep").fingerprint
    )
    assert whole.fingerprint != table(whole.path, "keep", missing="drop").fingerprint


def test_no_opinion_is_as_no_row_and_a_repeated_pair_counts_once(tmp_path):
    reasons = pa.array([None, "duplicate.pair", None, "x", "x"]).dictionary_encode()
    uids = [UIDS[0], UIDS[0], UIDS[1], UIDS[2], UIDS[2]]
    path = write(
        tmp_path / "l.parquet", uid=uids, keep=[True, False, None, False, False], reason=reasons
    )
    for missing, expected in (
        ("keep", [True, True, False, True]),
        ("drop", [True, False, False, False]),
    ):
        found = table(path, "keep", missing=missing)
        assert found.kept(found.find(digests_of(UIDS[:4]))).tolist() == expected


class _Quiet(Progress):
    def say(self, text: str) -> None:
        """Nothing."""


def test_a_new_decision_trains_without_new_shards(tmp_path, curate_recipe):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        (pictures / f"{number:03d}.png").write_bytes(scenes.picture(number))
        (pictures / f"{number:03d}.txt").write_text(
            " ".join(["word"] * (1 + number % 5)) + f" {number}"
        )
    source = {"use": "source.folder", "path": str(pictures), "rows_per_part": 5}
    measure = {"use": "score.caption_shape"}
    curated = curate_recipe(source, [measure])

    def run(recipe):
        curation.run(plan_curation(recipe), LocalRunner(), _Quiet())
        return recipe.curate

    made = run(curated)
    refuse = {"use": "filter.threshold", "column": "caption_words", "at_least": 4}
    pool = made.pool  # the same pool and another folder: only the filter is new
    decided = run(curate_recipe(source, [measure, refuse], pool=pool, shards=str(tmp_path / "new")))
    (folder,) = storage.glob(storage.join(decided.pool, "columns", "filter.threshold-*"))
    found = TarSet(made.shards, sidecars=[Sidecar(path=folder, use="keep")])
    everything = TarSet(made.shards)
    kept = sorted(found.read(number).caption for number in range(len(found)))
    wanted = sorted(
        text for number in range(12) if len((text := everything.read(number).caption).split()) >= 4
    )
    assert kept == wanted
    assert 0 < len(kept) < 12
    # The ledger of the second run, over all its filters, is such a list too.
    ledger = TarSet(
        made.shards,
        sidecars=[Sidecar(path=storage.join(decided.shards, "ledger.parquet"), use="keep")],
    )
    assert ledger.counts == found.counts
    storage.remove(storage.join(folder, "manifest.json"))
    with pytest.raises(ValueError, match=r"has not finished. hint: run it to the end"):
        TarSet(made.shards, sidecars=[Sidecar(path=folder, use="keep")])
