"""Real photographs from URLs to shards to weights; open_clip's own reader and webdataset read the shards.

Needs the shared data; skipped where it is absent.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines import curation, launch, recipe
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.bench import photographs
from tests.pipelines.test_curation import Quiet

PICTURES = 60

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def curated(
    tmp_path_factory: pytest.TempPathFactory, shared_data: Path
) -> tuple[Any, dict[str, bytes], list[tuple[str, str]]]:
    """The recipe of `tests/bench/photographs.py` over a few pictures, run; two rows are dead links."""
    out = tmp_path_factory.mktemp("photos")
    pictures, rows = photographs.read_pairs(shared_data / "pairs-flickr8k-dev.tar")
    names = list(pictures)[: PICTURES + 1]
    rows = [row for row in rows if row[0] in names]
    pictures = {name: pictures[name] for name in names[:PICTURES]}
    with photographs.served(pictures) as base_url:
        photographs.write_list(out / "list.tsv", rows, base_url)
        loaded = recipe.load(
            "photos",
            [f"curate.pool={out}/pool", f"curate.shards={out}/shards", f"curate.source.path={out}/list.tsv", f"train.out={out}/train",
             "curate.shard.samples_per_shard=100", "curate.source.rows_per_part=90", "train.workers=0",
             "train.phase.0.samples=128", "train.phase.0.global_batch=32", f"evaluate.0.path={out}/shards"],
        )  # fmt: skip
        curation.run(plan_curation(loaded), LocalRunner(), Quiet())
    return loaded, pictures, rows


def test_the_ledger_has_every_row_and_the_dead_links_reasons(curated: Any) -> None:
    loaded, pictures, rows = curated
    ledger = pq.read_table(Path(loaded.curate.shards) / "ledger.parquet").to_pylist()
    assert len(ledger) == len(rows)
    dead = [row for row in ledger if not row["url"].endswith(tuple(pictures))]
    assert dead
    assert {row["reason"] for row in dead} == {"error.download.fetch.http.404"}
    assert sum(row["keep"] for row in ledger) > 0.9 * len(pictures) * 5
    assert [row["caption"] for row in ledger] == [caption for _, caption in rows]


def test_the_shards_hold_what_the_ledger_keeps(curated: Any) -> None:
    loaded, _, _ = curated
    root = Path(loaded.curate.shards)
    kept = {
        row["uid"]: row["caption"]
        for row in pq.read_table(root / "ledger.parquet").to_pylist()
        if row["keep"]
    }
    found: dict[str, str] = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    found[member.name[:-4]] = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
    assert found == kept
    assert sum(json.loads((root / "sizes.json").read_text()).values()) == len(kept)


def test_plain_webdataset_reads_the_shards(curated: Any) -> None:
    import webdataset

    loaded, _, _ = curated
    root = Path(loaded.curate.shards)
    kept = pq.read_table(root / "index.parquet")["key"].unique()
    tars = sorted(str(path) for path in root.glob("*.tar"))
    samples = list(
        webdataset.WebDataset(tars, shardshuffle=False).decode("pil").to_tuple("jpg", "txt", "json")
    )
    assert len(samples) == len(kept)
    image, text, record = samples[0]
    assert image.mode == "RGB"
    assert record["caption"] == text


def test_open_clip_s_own_reader_reads_the_shards(curated: Any) -> None:
    """open_clip's webdataset pipeline stages, as its trainer builds them."""
    from pretrain.model.encoder import import_open_clip

    import_open_clip()
    import webdataset
    from open_clip_train import data

    loaded, _, _ = curated
    root = Path(loaded.curate.shards)
    tars = sorted(str(path) for path in root.glob("*.tar"))
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(tars),
        data.tarfile_to_samples_nothrow,
        webdataset.select(data.filter_no_caption_or_no_image),
        webdataset.decode("pilrgb", handler=data.log_and_continue),
        webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
        webdataset.to_tuple("image", "text"),
    )
    samples = list(pipeline)
    assert len(samples) == len(pq.read_table(root / "index.parquet")["key"].unique())


def test_training_and_evaluating_on_them(curated: Any) -> None:
    loaded, _, _ = curated
    told = launch.run_rank(loaded, resume=False, progress=lambda line: None)
    assert told["samples_seen"] == 128
    figures = launch.run_evaluations(loaded, told["checkpoint"])
    assert 0 <= figures["held-out photographs"]["image_to_text_r10"] <= 1
