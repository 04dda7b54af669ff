"""Training from an object store: the weights of a training from disk, whatever the store does on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from curate.contract import storage
from pretrain.loop import checkpoint, train
from pretrain.loop.settings import Phase, ShardSource, TrainSettings
from tests.tiny import object_server, scenes

pytestmark = pytest.mark.net
BATCH = 8


def weights(
    shards: str, folder: Path, out: str, workers: int, steps: int
) -> dict[str, torch.Tensor]:
    settings = TrainSettings(
        model=str(folder / "tiny_32.json"),
        out=str(folder / out),
        precision="fp32",
        workers=workers,
        cache=str(folder / f"cache-{out}"),
        cache_gb=0.00006,  # two or three of the shards
        shards=(ShardSource(path=shards),),
        phase=(
            Phase(
                samples=steps * BATCH,
                global_batch=BATCH,
                lr=2e-3,
                warmup_samples=2 * BATCH,
            ),
        ),
    )
    made = train.run(settings, seed=0, recipe_text="# recipe\n", data_hash="abc")
    return checkpoint.read(made.checkpoint)["state_dict"]


@pytest.mark.parametrize(
    ("workers", "steps", "every"), [(1, 3, 0), pytest.param(2, 20, 20, marks=pytest.mark.slow)]
)
def test_the_same_weights_as_from_disk_while_the_store_fails(
    bucket: str, moto_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    workers: int, steps: int, every: int,
) -> None:  # fmt: skip
    scenes.write_shards(tmp_path / "shards", 40, per_shard=7, rewrite_count=3)
    scenes.write_model(tmp_path)
    for path in (tmp_path / "shards").iterdir():
        storage.link_or_copy(str(path), f"{bucket}/shards/{path.name}")
    here = weights(str(tmp_path / "shards"), tmp_path, "here", workers=0, steps=steps)
    with object_server.proxy(moto_address, every=every) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        there = weights(f"{bucket}/shards", tmp_path, "there", workers=workers, steps=steps)
        assert any(kind for _, _, kind in proxy.seen) == bool(every)
        assert any(path.endswith(".tar") for method, path, _ in proxy.seen if method == "GET")
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
