"""img2dataset does the work, in memory, in row order, and nothing of it leaks into the process."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from aiohttp import web

from curate.download import img2dataset_engine
from curate.download.guard import Policy, Refused
from curate.download.img2dataset_engine import Engine, ResizeOptions, _wait_s, borrowed
from curate.download.pixels import Bounds
from curate.score.picture import decode
from tests.tiny.local_server import serve
from tests.tiny.pictures import encoded, quadrants

ROOT = Path(__file__).resolve().parents[3]


def engine(retries: int = 0, **options: Any) -> Engine:
    asked = {
        "image_size": 32,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": False,
        "encode_format": "png",
        "encode_quality": 1,
    }
    policy = Policy(timeout_s=5.0, allow_hosts=frozenset({"127.0.0.1"}))
    return Engine(
        policy, Bounds(), ResizeOptions(**{**asked, **options}), thread_count=8, retries=retries
    )


@pytest.mark.net
def test_outcomes_stand_in_row_order_whatever_came_first() -> None:
    async def answer(request: web.Request) -> web.Response:
        value = int(request.path[1:])
        if value % 5 == 3:
            return web.Response(status=404)
        return web.Response(body=encoded(np.full((40, 40, 3), value, np.uint8)))

    with serve(answer) as base:
        found = engine().download([f"{base}/{value}" for value in range(30)])
    for value, outcome in enumerate(found):
        if value % 5 == 3:
            assert (outcome.kind, outcome.status, outcome.image) == (
                "http.404",
                "failed_to_download",
                None,
            )
        else:
            assert (outcome.kind, outcome.status, outcome.error_message) == (None, "success", None)
            assert decode(outcome.image or b"")[0, 0].tolist() == [value] * 3
            sent = encoded(np.full((40, 40, 3), value, np.uint8))
            assert outcome.sha256 == hashlib.sha256(sent).hexdigest()
    assert engine().download([]) == []


@pytest.mark.net
@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("no", (64, 48)),
        ("keep_ratio", (43, 32)),
        ("center_crop", (32, 32)),
        ("border", (32, 32)),
        ("keep_ratio_largest", (32, 24)),
    ],
)
def test_resize_modes_are_those_of_img2dataset(mode: str, size: tuple[int, int]) -> None:
    """The bytes are those of img2dataset's own Resizer on the same picture."""
    sent = encoded(quadrants(64, 48), "JPEG")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=sent)

    with serve(answer) as base:
        (found,) = engine(resize_mode=mode, encode_format="jpg", encode_quality=90).download([base])
    assert (found.width, found.height) == size
    assert (found.original_width, found.original_height) == (64, 48)
    oracle = borrowed()[1].Resizer(
        image_size=32, resize_mode=mode, resize_only_if_bigger=False, encode_quality=90
    )
    assert oracle(io.BytesIO(sent))[0] == found.image


@pytest.mark.net
def test_what_may_pass_is_tried_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    # The engine's own clock: other threads of the session sleep too.
    clock = SimpleNamespace(**{**vars(time), "sleep": waits.append})
    monkeypatch.setattr(img2dataset_engine, "time", clock)
    hits: dict[str, int] = {}

    async def answer(request: web.Request) -> web.Response:
        hits[request.path] = hits.get(request.path, 0) + 1
        if request.path == "/gone":
            return web.Response(status=410)
        if request.path == "/late":
            return web.Response(status=429, headers={"Retry-After": "3600"})
        if hits[request.path] < 3:
            return web.Response(
                status=503, headers={"Retry-After": "2"} if hits[request.path] == 1 else {}
            )
        return web.Response(body=encoded(quadrants()))

    with serve(answer) as base:
        found = engine(retries=2).download([base + path for path in ("/gone", "/late", "/busy")])
    assert [outcome.kind for outcome in found] == ["http.410", "http.429", None]
    assert hits == {"/gone": 1, "/late": 1, "/busy": 3}
    assert waits[0] == 2.0
    assert 0.5 <= waits[1] <= 1.5  # 0.5 s doubled once, with jitter


def test_waits_grow_and_are_the_same_in_every_run() -> None:
    waits = [_wait_s(Refused("timeout", ""), attempt, "http://a/") for attempt in range(10)]
    assert waits == [_wait_s(Refused("timeout", ""), attempt, "http://a/") for attempt in range(10)]
    assert all(0.25 * 2**n <= w <= 0.75 * 2**n for n, w in enumerate(waits[:5]) if w is not None)
    assert waits[-1] == 30.0
    assert _wait_s(Refused("http.404", ""), 0, "") is None


def test_a_row_that_img2dataset_loses_still_has_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("lost")

    made = engine()
    monkeypatch.setattr(made, "_resized", broken)
    monkeypatch.setattr(made, "_fetched", lambda row, **_: (row[0], io.BytesIO(b"x"), None))
    (found,) = made.download(["http://a/"])
    assert (found.kind, found.image) == ("other", None)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No files, no output, no half-made img2dataset or wandb for the next who imports them."""
    code = (
        "import sys\n"
        "from curate.download.fetch import Fetch\n"
        "import pyarrow as pa\n"
        "stage = Fetch(timeout=1.0)\n"
        "table = stage.process(pa.table({'url': ['file:///etc/passwd', None]}), stage.open())\n"
        "assert table['reason'].to_pylist() == ['error.download.fetch.scheme', 'error.download.fetch.bad_url']\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in ('img2dataset', 'wandb', 'ray', 'torch')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
    assert not [
        name for name in fsspec.filesystem("memory").ls("/", detail=False) if "clip-pipe" in name
    ]
