"""img2dataset does the work, in memory, in row order, and nothing of it leaks into the process."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from aiohttp import web

from curate.download.guard import Policy
from curate.download.img2dataset_engine import Img2datasetEngine, borrowed
from curate.download.outcomes import Outcome
from curate.download.pictures import PictureOptions
from curate.score.picture import decode
from tests.tiny.local_server import serve
from tests.tiny.pictures import encoded, quadrants

ROOT = Path(__file__).resolve().parents[3]
Make = Callable[..., Img2datasetEngine]


@pytest.fixture
def make() -> Iterator[Make]:
    opened: list[Img2datasetEngine] = []

    def one(retries: int = 0, **options: Any) -> Img2datasetEngine:
        asked = {"image_size": 32, "encode_format": "png", "encode_quality": 1, **options}
        policy = Policy(timeout_s=30.0, allow_hosts=frozenset({"127.0.0.1"}), retries=retries)
        opened.append(
            Img2datasetEngine(
                policy, PictureOptions(**asked), thread_count=8, memory_bytes=64 << 20
            )
        )
        return opened[-1]

    yield one
    for engine in opened:
        engine.close()


def collected(engine: Img2datasetEngine, urls: list[str | None]) -> list[Outcome]:
    return engine.collect([str(n) for n in range(len(urls))], urls, [None] * len(urls))


@pytest.mark.net
def test_outcomes_stand_in_row_order_whatever_came_first(make: Make) -> None:
    async def answer(request: web.Request) -> web.Response:
        value = int(request.path[1:])
        if value % 5 == 3:
            return web.Response(status=404)
        return web.Response(body=encoded(np.full((40, 40, 3), value, np.uint8)))

    engine = make()
    with serve(answer) as base:
        found = collected(engine, [f"{base}/{value}" for value in range(30)])
    for value, outcome in enumerate(found):
        if value % 5 == 3:
            assert (outcome.kind, outcome.status) == ("http.404", "failed_to_download")
            assert outcome.image is engine.wire_bytes[value] is None
        else:
            assert (outcome.kind, outcome.status, outcome.error_message) == (None, "success", None)
            assert decode(outcome.image or b"")[0, 0].tolist() == [value] * 3
            sent = encoded(np.full((40, 40, 3), value, np.uint8))
            assert outcome.sha256 == hashlib.sha256(sent).hexdigest()
            assert outcome.wire_bytes == engine.wire_bytes[value] == len(sent)
    assert collected(engine, []) == []
    assert engine.costs()["requests"] == 30


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
def test_resize_modes_are_those_of_img2dataset(
    make: Make, mode: str, size: tuple[int, int]
) -> None:
    """The bytes are those of img2dataset's own Resizer on the same picture."""
    sent = encoded(quadrants(64, 48), "JPEG")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=sent)

    with serve(answer) as base:
        engine = make(resize_mode=mode, encode_format="jpg", encode_quality=90)
        (found,) = collected(engine, [base])
    assert (found.width, found.height) == size
    assert (found.original_width, found.original_height) == (64, 48)
    oracle = borrowed()[1].Resizer(
        image_size=32, resize_mode=mode, resize_only_if_bigger=False, encode_quality=90
    )
    assert oracle(io.BytesIO(sent))[0] == found.image


@pytest.mark.net
def test_what_may_pass_is_tried_again_and_nothing_else(make: Make) -> None:
    hits: dict[str, int] = {}

    async def answer(request: web.Request) -> web.Response:
        hits[request.path] = hits.get(request.path, 0) + 1
        if request.path == "/gone":
            return web.Response(status=410)
        if hits[request.path] < 2:
            return web.Response(status=503, headers={"Retry-After": "0"})
        return web.Response(body=encoded(quadrants()))

    with serve(answer) as base:
        found = collected(make(retries=2), [base + path for path in ("/gone", "/busy")])
    assert [outcome.kind for outcome in found] == ["http.410", None]
    assert hits == {"/gone": 1, "/busy": 2}


@pytest.mark.net
def test_all_bytes_stay_as_they_came_where_nothing_is_to_be_encoded_anew(make: Make) -> None:
    sent = encoded(quadrants(300, 200), "BMP")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=sent)

    with serve(answer) as base:
        (found,) = collected(make(disable_all_reencoding=True), [base])
    assert (found.kind, found.image) == (None, sent)


def test_a_row_that_img2dataset_loses_still_has_an_outcome(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("lost")

    made = make()
    monkeypatch.setattr(made, "_resized", broken)
    monkeypatch.setattr(made, "_fetched", lambda row, **_: (row[0], io.BytesIO(b"x"), None))
    (found,) = collected(made, ["http://a/"])
    assert (found.kind, found.image) == ("other", None)


def test_nothing_is_begun_before_it_is_asked_for(make: Make) -> None:
    engine = make()
    engine.expect(["1"], ["http://a/"], [None], "nowhere")
    assert not engine.wants_more()
    assert engine.costs()["requests"] == 0


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """No files, no output, no half-made img2dataset or wandb for the next who imports them."""
    code = (
        "import sys\n"
        "from curate.download.fetch import Fetch\n"
        "import pyarrow as pa\n"
        "stage = Fetch(timeout=1.0, engine='img2dataset')\n"
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
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
    assert not [
        name for name in fsspec.filesystem("memory").ls("/", detail=False) if "clip-pipe" in name
    ]
