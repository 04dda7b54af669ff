"""What tests share: the real data's folder, recipes as data, and one Ray cluster per session."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# An example's time is that of the machine: hypothesis would fail one of 0.2 s.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes a file's tests stay together, and all that need Ray share one cluster."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long or binary bytes are named by a count: what holds a clock would differ between processes."""
    if isinstance(val, bytes) and (len(val) > 40 or not val.isascii()):
        return f"{len(val)} bytes"
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("CLIP_PIPE_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set CLIP_PIPE_SHARED_DATA to run this")
    return folder


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """One local Ray cluster for the session; the runner finds it started and leaves it so."""
    import ray

    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    from pipelines import run_ray

    options = {"num_cpus": 2, "log_to_driver": False, "runtime_env": {"env_vars": environment}}
    run_ray._start_here(ray, options)
    yield "session"
    ray.shutdown()


@pytest.fixture(scope="session")
def moto_address() -> Iterator[str]:
    """One S3 server for the session, in a process of its own; nothing of it is in the environment."""
    from tests.tiny import object_server

    with object_server.moto() as address:
        yield address


@pytest.fixture
def bucket(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://`` and a new bucket, which this test's environment leads to."""
    from tests.tiny import object_server

    name = f"test-{uuid.uuid4().hex[:12]}"
    object_server.make_bucket(moto_address, name)
    for variable, value in object_server.environment(moto_address).items():
        monkeypatch.setenv(variable, value)
    return f"s3://{name}"


@pytest.fixture
def curate_recipe(tmp_path: Path) -> Callable[..., Any]:
    """A recipe with a [curate] table from Python data: ``curate_recipe(source, stages, **options)``."""
    from pipelines import recipe

    def make(
        source: dict[str, Any],
        stages: list[dict[str, Any]],
        folder: str = "run",
        name: str = "test",
        shard: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        curate = {
            "pool": str(tmp_path / folder / "pool"),
            "shards": str(tmp_path / folder / "shards"),
            "source": source,
            "stage": stages,
            **options,
        }
        if shard is not None:
            curate["shard"] = shard
        return recipe.from_data({"name": name, "curate": curate}, "test.toml")

    return make
