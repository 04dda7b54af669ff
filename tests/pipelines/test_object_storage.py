"""A whole curation on an object store: the same shards as on disk, whatever the store does on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.contract import storage, tars
from pipelines import curation
from pipelines.plan import plan_curation
from pipelines.run_local import LocalRunner
from tests.pipelines.test_curation import SOURCE, STAGES, Quiet
from tests.tiny import object_server, scenes
from tests.tiny.stages import USE

pytestmark = pytest.mark.net


def run(recipe: Any) -> Any:
    return curation.run(plan_curation(recipe), LocalRunner(), Quiet())


def shards_of(recipe: Any) -> dict[str, bytes]:
    root = recipe.curate.shards
    found = {}
    for name in ("*.tar", "index.parquet", "ledger.parquet", "sizes.json"):
        for path in storage.glob(storage.join(root, name)):
            with storage.open_file(path) as file:
                found[path.rpartition("/")[2]] = file.read()
    return found


def put_tars(root: str, count: int) -> None:
    """Tars of ten pictures with their words."""
    for number in range(count):
        with storage.committed(f"{root}/{number:05d}.tar") as file:
            for n in range(10 * number, 10 * number + 10):
                file.write(tars.member(f"{n:04d}.png", scenes.picture(n)))
                file.write(tars.member(f"{n:04d}.txt", f"scene {n}".encode()))
            file.write(tars.END)


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_same_shards_as_on_disk_while_the_store_fails(
    curate_recipe: Callable[..., Any], bucket: str, moto_address: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, count: int,
) -> None:  # fmt: skip
    here, there = str(tmp_path / "tars"), f"{bucket}/tars"
    put_tars(here, count)
    put_tars(there, count)
    stages = [{"use": f"{USE}:Length"}, {"use": f"{USE}:PictureSize"}]
    shard = {"samples_per_shard": 6}
    local = curate_recipe({"use": "source.image_tars", "path": here}, stages, shard=shard)
    run(local)
    with object_server.proxy(moto_address, every=20) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        remote = curate_recipe(
            {"use": "source.image_tars", "path": there},
            stages,
            shard=shard,
            pool=f"{bucket}/run/pool",
            shards=f"{bucket}/run/shards",
        )
        run(remote)
        failed = [kind for _, _, kind in proxy.seen if kind]
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_address)
    assert set(failed) == set(object_server.Proxy.kinds)
    assert shards_of(remote) == shards_of(local)
    assert len(shards_of(local)) == -(-10 * count // 6) + 3
    assert (
        storage.exists(f"{bucket}/run/shards/report.html")
        == (tmp_path / "run" / "shards" / "report.html").exists()
    )


@pytest.mark.slow
def test_a_second_run_does_nothing_again(curate_recipe: Callable[..., Any], bucket: str) -> None:
    recipe = curate_recipe(SOURCE, STAGES, pool=f"{bucket}/pool", shards=f"{bucket}/shards")
    run(recipe)
    before = storage.marks(f"{bucket}/shards")
    run(recipe)
    assert storage.marks(f"{bucket}/shards") == before
