"""download.fetch against a local web of good, odd and hostile answers: each row ok or with one reason."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aiohttp import web

from curate.download import decoders, fetch, fetcher
from curate.download.fetch import Fetch
from curate.download.journal import Journal
from curate.download.opt_out import opted_out
from curate.download.outcomes import KINDS, is_transient, matches
from curate.score.picture import decode
from curate.stage import StageError
from tests.tiny.local_server import serve
from tests.tiny.pictures import (
    corner_colours,
    encoded,
    quadrants,
    shared_data,
    tar_files,
    with_orientation,
)

ROOT = Path(__file__).resolve().parents[3]
Fetched = Callable[..., pa.Table]

PHOTO = encoded(quadrants(400, 300), "JPEG", quality=95)


async def web_of_faults(request: web.Request) -> web.StreamResponse:
    path = request.path
    if path == "/endless" or path == "/drip":
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"\xff" * (1 << 16 if path == "/endless" else 1))
                await asyncio.sleep(0 if path == "/endless" else 0.05)
        return response
    answers: dict[str, dict[str, Any]] = {
        "/photo.jpg": {"body": PHOTO},
        "/gone.jpg": {"status": 404},
        "/page.jpg": {"body": b"<!DOCTYPE html><h1>Not here</h1>", "content_type": "image/jpeg"},
        "/typed as text": {"body": PHOTO, "content_type": "text/plain"},
        "/cut.jpg": {"body": PHOTO[: len(PHOTO) // 2]},
        "/out": {"body": PHOTO, "headers": {"X-Robots-Tag": "noai"}},
        "/away": {"status": 302, "headers": {"Location": "http://10.0.0.1/"}},
        "/pixel.gif": {"body": encoded(np.zeros((1, 1), np.uint8), "GIF")},
        "/strip.png": {"body": encoded(np.zeros((20, 2000, 3), np.uint8))},
        "/deep.png": {"body": encoded(np.full((32, 32), 0x8000, np.uint16))},
        "/turned.jpg": {"body": with_orientation(quadrants(400, 300), 6)},
        "/größe ü.jpg": {"body": PHOTO},
        "/empty": {"body": b""},
    }
    return web.Response(**answers[path])


EXPECTED = {
    "/photo.jpg": None,
    "/gone.jpg": "http.404",
    "/page.jpg": "not_an_image",
    "/typed as text": None,
    "/cut.jpg": "decode",
    "/out": "opt_out",
    "/away": "forbidden_address",
    "/pixel.gif": "too_small",
    "/strip.png": "too_large.aspect",
    "/deep.png": None,
    "/turned.jpg": None,
    "/größe ü.jpg": None,
    "/empty": "not_an_image",
    "/endless": "too_large.bytes",
    "/drip": "timeout.total",
}


def stage_of(**options: Any) -> Fetch:
    given = {"allow_hosts": ("127.0.0.1",), "timeout": 30.0, "max_bytes": 4 << 20}
    stage = Fetch(**{**given, **options})
    stage.check()
    return stage


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[Fetch, Any]]:
    """One engine for all that ask with equal options: a decoding process takes a second to start."""
    opened: dict[Fetch, Any] = {}
    yield opened
    for engine in opened.values():
        engine.close()


@pytest.fixture
def fetched(engines: dict[Fetch, Any]) -> Fetched:
    """The table that a stage with these options gives for rows of these URLs."""

    def run(urls: list[str | None], columns: dict[str, Any] | None = None, **options: Any) -> Any:
        options = options if "engine" in options else {"decode_processes": 1, **options}
        stage = stage_of(**options)
        if stage not in engines:
            engines[stage] = stage.open()
        table = stage.process(rows_of(urls, **(columns or {})), engines[stage])
        assert table.schema == stage.writes()
        assert table.num_rows == len(urls)
        return table

    return run


def rows_of(urls: list[str | None], first: int = 0, **columns: list[Any]) -> pa.Table:
    uids = [f"{first + n:032x}" for n in range(len(urls))]
    return pa.table({"uid": uids, "url": pa.array(urls, pa.string()), **columns})


def kinds_of(table: pa.Table) -> list[str | None]:
    return [
        None if reason is None else reason.removeprefix("error.download.fetch.")
        for reason in table["reason"].to_pylist()
    ]


@pytest.mark.net
@pytest.mark.parametrize("engine", ["clip-pipe", "img2dataset"])
def test_each_row_is_ok_or_has_one_reason(fetched: Fetched, engine: str) -> None:
    options = {"engine": engine, "timeout": 3.0}  # a drip has all of it; so has whatever is slow
    with serve(web_of_faults) as base:
        fetched([base + "/photo.jpg"], **options)  # imports and a start are not measured here
        began = time.monotonic()
        table = fetched([base + path for path in EXPECTED], **options)
        assert time.monotonic() - began < 60  # a drip goes on for ever
    assert kinds_of(table) == list(EXPECTED.values())
    for row in table.to_pylist():
        ok = row["reason"] is None
        assert row["keep"] is ok
        assert row["status"] == "success" if ok else row["status"].startswith("failed_to_")
        assert (row["error_message"] is None) is ok
        for name in ("image", "width", "height", "original_width", "original_height", "sha256"):
            assert (row[name] is not None) is ok
    rows = dict(zip(EXPECTED, table.to_pylist()))
    assert rows["/photo.jpg"]["sha256"] == hashlib.sha256(PHOTO).hexdigest()
    assert (rows["/photo.jpg"]["width"], rows["/photo.jpg"]["height"]) == (341, 256)
    assert (rows["/photo.jpg"]["original_width"], rows["/photo.jpg"]["original_height"]) == (
        400,
        300,
    )
    assert decode(rows["/deep.png"]["image"]).mean() == pytest.approx(127, abs=1)
    assert (rows["/turned.jpg"]["width"], rows["/turned.jpg"]["height"]) == (256, 341)
    assert corner_colours(decode(rows["/turned.jpg"]["image"])) == "brwg"


def texture(width: int, height: int, seed: int) -> np.ndarray:
    """Smooth noise with edges, as photographs have: shape (height, width, 3)."""
    import cv2

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 40 + 2, width // 40 + 2, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    smooth[height // 3 : height // 2, width // 4 : width // 2] = (30, 200, 90)
    return smooth


def ordinary_pictures() -> dict[str, bytes]:
    photo = texture(900, 700, 0)
    alpha = np.dstack([photo[:300, :400], np.full((300, 400), 128, np.uint8)])
    return {
        "jpeg": encoded(photo, "JPEG", quality=92),
        "progressive": encoded(photo, "JPEG", quality=90, progressive=True),
        "fine": encoded(photo, "JPEG", quality=95, subsampling=0),
        "grey": encoded(photo[:, :, 0], "JPEG"),
        "tall": encoded(texture(300, 1100, 1), "JPEG"),
        "small": encoded(photo[:90, :120], "JPEG"),
        "png": encoded(photo),
        "alpha": encoded(alpha),
        "webp": encoded(photo, "WEBP", quality=90),
        "exact size": encoded(photo[:256, :256], "JPEG"),
    }


def psnr_db(one: bytes, other: bytes) -> float:
    difference = decode(one).astype(float) - decode(other).astype(float)
    return float(10 * np.log10(255**2 / max(1e-9, (difference**2).mean())))


@pytest.mark.net
def test_both_engines_agree_on_ordinary_pictures(fetched: Fetched) -> None:
    pictures = ordinary_pictures()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=pictures[request.path[1:]])

    with serve(answer) as base:
        urls: list[str | None] = [f"{base}/{name}" for name in pictures]
        oracle = fetched(urls, engine="img2dataset")
        exact = fetched(urls, quality="exact")
        fast = fetched(urls)
    assert oracle["status"].to_pylist() == ["success"] * len(urls)
    for table in (exact, fast):
        assert table.drop_columns(["image"]).equals(oracle.drop_columns(["image"]))
    for name, theirs, ours, quick in zip(
        pictures,
        *(table["image"].to_pylist() for table in (oracle, exact, fast)),
        strict=True,
    ):
        assert psnr_db(theirs, ours) >= 37, name
        assert psnr_db(theirs, quick) >= 32, name


@pytest.mark.net
def test_rows_are_the_same_for_any_cut_in_batches_and_with_or_without_a_look_ahead(
    fetched: Fetched, engines: dict[Fetch, Any], tmp_path: Path
) -> None:
    paths = [path for path in EXPECTED if path != "/drip"]
    with serve(web_of_faults) as base:
        urls: list[str | None] = [base + path for path in paths]
        whole = fetched(urls)
        stage = stage_of(decode_processes=1)
        engine = engines[stage]
        for cut in (1, 5, 14):
            rows = rows_of(urls, 100 * cut)
            if cut > 1:
                stage.expect(rows, engine, str(tmp_path / str(cut)))
            parts = [
                stage.process(rows.slice(start, cut), engine) for start in range(0, len(urls), cut)
            ]
            assert pa.concat_tables(parts).combine_chunks().to_pylist() == whole.to_pylist()


@pytest.mark.net
def test_loopback_is_closed_unless_named(fetched: Fetched) -> None:
    with serve(web_of_faults) as base:
        table = fetched([base + "/photo.jpg", "file:///etc/hostname", None], allow_hosts=())
    assert kinds_of(table) == ["forbidden_address", "scheme", "bad_url"]


@pytest.mark.net
def test_resize_only_if_bigger_and_limits_are_options(fetched: Fetched) -> None:
    with serve(web_of_faults) as base:
        urls: list[str | None] = [base + "/photo.jpg", base + "/pixel.gif", base + "/strip.png"]
        table = fetched(
            urls,
            image_size=350,
            resize_only_if_bigger=True,
            min_image_size=0,
            max_aspect_ratio=100.0,
            disallowed_header_directives=(),
        )
        assert table["width"].to_pylist() == [400, 1, 2000]
        small = fetched(urls[:1], max_image_area=100_000)
        assert kinds_of(small) == ["too_large.pixels"]
        png = fetched(urls[:1], encode_format="png", encode_quality=3)
        assert png["image"][0].as_py().startswith(b"\x89PNG")


@pytest.mark.net
@pytest.mark.parametrize("engine", ["clip-pipe", "img2dataset"])
def test_other_bytes_than_expected_are_refused(fetched: Fetched, engine: str) -> None:
    other = encoded(quadrants(300, 300))

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=PHOTO if request.path == "/photo" else other)

    right = hashlib.md5(PHOTO).hexdigest()
    hashes = [right, right.upper(), right, None, "not hex"]
    with serve(answer) as base:
        urls: list[str | None] = [
            base + path for path in ("/photo", "/photo", "/x", "/photo", "/x")
        ]
        table = fetched(urls, {"md5": hashes}, engine=engine, verify_hash=("md5", "md5"))
    assert kinds_of(table) == [None, None, "hash", "hash", "hash"]
    assert table["status"].to_pylist() == ["success"] * 2 + ["failed_to_download"] * 3


@pytest.mark.net
def test_exif_is_one_more_column_and_the_same_in_both_engines(fetched: Fetched) -> None:
    bodies = {"/turned": with_orientation(quadrants(), 6), "/plain": PHOTO, "/text": b"none"}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=bodies[request.path])

    with serve(answer) as base:
        urls: list[str | None] = [base + path for path in bodies]
        ours, theirs = (
            fetched(urls, extract_exif=True, engine=engine)["exif"].to_pylist()
            for engine in ("clip-pipe", "img2dataset")
        )
    assert ours == theirs
    assert "Image Orientation" in json.loads(ours[0])
    assert ours[1:] == ["{}", None]


@pytest.mark.net
@pytest.mark.parametrize("engine", ["clip-pipe", "img2dataset"])
def test_what_fits_and_is_clean_may_stay_as_it_came(fetched: Fetched, engine: str) -> None:
    fits = encoded(quadrants(200, 150), "JPEG", quality=80)
    turned = with_orientation(quadrants(200, 150), 6)
    bodies = {
        "/fits": fits,
        "/large": PHOTO,
        "/png": encoded(quadrants(200, 150)),
        "/turned": turned,
    }

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=bodies[request.path])

    with serve(answer) as base:
        urls: list[str | None] = [base + path for path in bodies]
        table = fetched(urls, engine=engine, skip_reencode=True, resize_only_if_bigger=True)
    found = dict(zip(bodies, table["image"].to_pylist()))
    assert found["/fits"] == fits
    assert all(found[path] != bodies[path] for path in ("/large", "/png", "/turned"))
    assert all(image.startswith(b"\xff\xd8") for image in found.values())
    assert corner_colours(decode(found["/turned"])) == "brwg"


class Counting:
    """A server's handler that answers with PHOTO and counts: asked for, and answered whole."""

    def __init__(self, answer: Callable[[str], float] = lambda path: 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._wait_s = answer

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        await asyncio.sleep(self._wait_s(request.path))
        response = web.StreamResponse(headers={"Content-Length": str(len(PHOTO))})
        await response.prepare(request)
        await response.write(PHOTO)
        await response.write_eof()
        self.answered[request.path] += 1
        return response


@pytest.mark.net
def test_one_url_of_many_rows_is_fetched_once(tmp_path: Path) -> None:
    server = Counting()
    with serve(server) as base:
        stage = stage_of()
        engine: Any = stage.open()
        urls: list[str | None] = [f"{base}/{n % 5} ä" for n in range(40)]
        for part in range(3):
            stage.expect(rows_of(urls, 100 * part), engine, str(tmp_path / str(part)))
        tables = [stage.process(rows_of(urls, 100 * part), engine) for part in range(3)]
        engine.close()
    assert all(table["status"].to_pylist() == ["success"] * 40 for table in tables)
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 5


@pytest.mark.net
def test_hanging_servers_do_not_hold_the_others(tmp_path: Path) -> None:
    others_came = threading.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path not in ("/3", "/57"):
            return await server(request)
        while not others_came.is_set():
            await asyncio.sleep(0.01)
        return web.Response(status=404)

    server = Counting()
    with serve(answer) as base:
        stage = stage_of(timeout=100.0, decode_processes=1)
        engine: Any = stage.open()
        urls: list[str | None] = [f"{base}/{n}" for n in range(100)]
        parts = [rows_of(urls[first : first + 50], first) for first in (0, 50)]
        for number, rows in enumerate(parts):
            stage.expect(rows, engine, str(tmp_path / str(number)))
        tables: list[pa.Table] = []
        collecting = threading.Thread(
            target=lambda: tables.extend(stage.process(rows, engine) for rows in parts)
        )
        collecting.start()
        until_s = time.monotonic() + 60
        while sum(server.answered.values()) < 98 and time.monotonic() < until_s:
            time.sleep(0.01)
        came, early = sum(server.answered.values()), len(tables)
        others_came.set()
        assert (came, early) == (98, 0), "the others waited for those that hang"
        collecting.join(100)
        engine.close()
    kinds = [kind for table in tables for kind in kinds_of(table)]
    assert len(kinds) == 100
    assert [n for n, kind in enumerate(kinds) if kind is not None] == [3, 57]
    assert kinds[3] == kinds[57] == "http.404"


@pytest.mark.net
def test_a_tiny_memory_slows_down_and_never_stops(tmp_path: Path) -> None:
    body = os.urandom(1 << 20)
    pictures = [encoded(texture(700, 700, n), "JPEG", quality=95) for n in range(6)]
    large = [picture + body for picture in pictures]  # with junk behind, as some sites send

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=large[int(request.path[1:]) % 6])

    with serve(answer) as base:
        stage = stage_of(memory_mb=1, timeout=60.0, resize_mode="no", decode_processes=1)
        engine: Any = stage.open()
        urls: list[str | None] = [f"{base}/{n}" for n in range(60)]
        for part in range(3):
            stage.expect(
                rows_of(urls[20 * part :][:20], 20 * part), engine, str(tmp_path / str(part))
            )
        for part in range(3):
            table = stage.process(rows_of(urls[20 * part :][:20], 20 * part), engine)
            assert table["status"].to_pylist() == ["success"] * 20
        engine.close()


@pytest.mark.net
def test_a_killed_download_goes_on_where_it_was(engines: dict[Fetch, Any], tmp_path: Path) -> None:
    server = Counting(lambda path: 0.02)
    killed = threading.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if int(request.path[1:]) >= 100 and not killed.is_set():
            server.asked[request.path] += 1
            await asyncio.sleep(600)
        return await server(request)

    code = (
        "import sys, time\n"
        "import pyarrow as pa\n"
        "from curate.download.fetch import Fetch\n"
        "stage = Fetch(allow_hosts=('127.0.0.1',), requests_per_host=4)\n"
        "uids = [f'{n:032x}' for n in range(120)]\n"
        "rows = pa.table({'uid': uids, 'url': [f'{sys.argv[1]}/{n}' for n in range(120)]})\n"
        "stage.expect(rows, stage.open(), sys.argv[2])\n"
        "time.sleep(300)\n"
    )
    with serve(answer) as base:
        child = subprocess.Popen([sys.executable, "-c", code, base, str(tmp_path)], cwd=ROOT)
        try:
            deadline_s = time.monotonic() + 120
            while len(Journal(str(tmp_path)).read()) < 100 or sum(server.asked.values()) < 104:
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        killed.set()
        noted = len(Journal(str(tmp_path)).read())
        stage = stage_of(decode_processes=1)
        engine = engines.setdefault(stage, None) or stage.open()
        engines[stage] = engine
        rows = rows_of([f"{base}/{n}" for n in range(120)])
        stage.expect(rows, engine, str(tmp_path))
        table = stage.process(rows, engine)
    assert table["status"].to_pylist() == ["success"] * 120
    twice = [path for path, count in server.asked.items() if count > 1]
    assert noted == 100
    assert set(twice) == {f"/{n}" for n in range(100, 104)}  # requests under way
    assert sum(server.asked.values()) == 120 + len(twice)
    assert len(server.asked) == 120


@pytest.mark.net
def test_nothing_is_left_running_some_seconds_after_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetcher, "IDLE_S", 0.2)
    monkeypatch.setattr(decoders, "_IDLE_S", 0.2)
    before, others = set(threading.enumerate()), _children()
    with serve(Counting()) as base:
        serving = set(threading.enumerate())
        stage = stage_of(decode_processes=2)
        engine = stage.open()
        assert set(threading.enumerate()) == serving  # nothing starts before it is needed
        for again in range(2):
            urls: list[str | None] = [f"{base}/{again}{n}" for n in range(9)]
            assert kinds_of(stage.process(rows_of(urls, 10 * again), engine)) == [None] * 9
            deadline_s = time.monotonic() + 60
            while set(threading.enumerate()) - serving or _children() - others:
                assert time.monotonic() < deadline_s, (threading.enumerate(), _children())
                time.sleep(0.02)
    assert set(threading.enumerate()) <= before


def _children() -> set[int]:
    """Process ids of decoders that are children of this process."""
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                line = (folder / "cmdline").read_text()
                if parent == os.getpid() and "curate.download.decoder" in line:
                    found.add(int(folder.name))
    return found


@pytest.mark.net
def test_a_worker_that_cannot_decode_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing/of/this/name")
    stage = stage_of()
    engine: Any = stage.open()
    with serve(Counting()) as base:
        for number in range(2):  # and it says so again
            with pytest.raises(StageError, match=r"download.fetch can't go on: .* hint: "):
                stage.process(rows_of([f"{base}/{number}"]), engine)
    engine.close()


@pytest.mark.net
def test_costs_tell_what_was_spent() -> None:
    with serve(Counting()) as base:
        stage = stage_of()
        engine: Any = stage.open()
        stage.process(rows_of([f"{base}/{n}" for n in range(5)]), engine)
        costs = stage.costs(engine)
        assert engine.wire_bytes == [len(PHOTO)] * 5
        engine.close()
    assert costs["requests"] == costs["pictures"] == 5
    assert costs["wire_bytes"] == 5 * len(PHOTO)
    assert 0 < costs["decode_cpu_s"] < costs["decoder_cpu_s"]
    assert stage.costs(engine)["requests"] == 0


@pytest.mark.net
def test_a_request_names_the_tool(fetched: Fetched) -> None:
    agents: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        agents.append(request.headers["User-Agent"])
        return web.Response(body=PHOTO)

    with serve(answer) as base:
        fetched([base])
        fetched([base], user_agent_token="mylab")
        fetched([base], user_agent_token="mylab", engine="img2dataset")
    assert agents == [
        "Mozilla/5.0 (compatible; clip-pipe)",
        "Mozilla/5.0 (compatible; mylab; clip-pipe)",
        "Mozilla/5.0 (compatible; mylab; img2dataset)",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"resize_mode": "squash"},
        {"upscale_interpolation": "magic"},
        {"encode_format": "gif"},
        {"encode_format": "png", "encode_quality": 95},
        {"quality": "best"},
        {"engine": "wget"},
        {"image_size": 0},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"first_byte_timeout": float("inf")},
        {"decode_timeout": -1.0},
        {"memory_mb": 0},
        {"requests_per_s_per_host": -1.0},
        {"retries": -1},
        {"max_image_area": 10**9},
        {"user_agent_token": " "},
        {"user_agent_token": "bot\r\nX-Header: 1"},
        {"allow_hosts": ("http://127.0.0.1",)},
        {"allow_hosts": ("*.example.com",)},
        {"verify_hash": ("md5",)},
        {"verify_hash": ("hash", "crc32")},
        {"verify_hash": ("sha256", "sha256")},
        {"skip_reencode": True, "disable_all_reencoding": True},
        {"engine": "img2dataset", "quality": "exact"},
        {"engine": "img2dataset", "decode_timeout": 3.0},
        {"image_size": 10_001},
        {"decode_processes": 257},
        {"disallowed_header_directives": ("noai", "TDM")},
        {"disallowed_header_directives": ("tdm_reservation",)},
        {"disallowed_header_directives": ("no-index",)},
        {"disallowed_header_directives": ("noimagesai",)},
    ],
)
def test_impossible_options_are_refused_with_a_hint(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="hint: "):
        Fetch(**options).check()


def test_any_other_directive_may_be_disallowed() -> None:
    stage = Fetch(disallowed_header_directives=("nofollow", "max-snippet", "of-our-own"))
    stage.check()
    assert {"nofollow", "of-our-own"} <= stage._policy().disallowed_directives
    assert opted_out(["of-our-own"], "us", stage._policy().disallowed_directives)


@pytest.mark.parametrize(
    ("option", "value", "place", "there"),
    [
        ("timeout", 3.0, "policy", ("timeout_s", 3.0)),
        ("first_byte_timeout", 3.0, "policy", ("first_byte_timeout_s", 3.0)),
        ("max_bytes", 77, "policy", ("max_bytes", 77)),
        ("max_redirects", 3, "policy", ("max_redirects", 3)),
        ("allow_hosts", ("A",), "policy", ("allow_hosts", frozenset({"a"}))),
        ("user_agent_token", "me", "policy", ("user_agent_token", "me")),
        ("disallowed_header_directives", ("X",), "policy", ("disallowed_directives", frozenset("x"))),
        ("robots_txt", True, "policy", ("robots_txt", True)),
        ("requests_per_host", 3, "policy", ("requests_per_host", 3)),
        ("requests_per_s_per_host", 3.0, "policy", ("requests_per_s_per_host", 3.0)),
        ("http2", False, "policy", ("http2", False)),
        ("retries", 3, "policy", ("retries", 3)),
        ("thread_count", 3, "engine", ("most_requests", 3)),
        ("decode_processes", 3, "engine", ("processes", 3)),
        ("decode_timeout", 3.0, "engine", ("decode_timeout_s", 3.0)),
        ("memory_mb", 3, "engine", ("memory_bytes", 3 << 20)),
        ("verify_hash", ("h", "md5"), "pictures", ("hash_name", "md5")),
        *(
            (name, value, "pictures", (name, value))
            for name, value in {
                "image_size": 3, "resize_mode": "no", "resize_only_if_bigger": True,
                "upscale_interpolation": "cubic", "downscale_interpolation": "cubic", "min_image_size": 3,
                "max_aspect_ratio": 3.0, "max_image_area": 3, "max_frames": 3, "encode_format": "webp",
                "encode_quality": 3, "skip_reencode": True, "disable_all_reencoding": True,
                "extract_exif": True, "quality": "exact",
            }.items()
        ),
    ],
)  # fmt: skip
def test_each_option_reaches_what_heeds_it(
    option: str, value: Any, place: str, there: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import curate.download.engine as module

    given: dict[str, Any] = {}

    def engine(policy: Any, pictures: Any, **settings: Any) -> None:
        given.update(policy=vars(policy), pictures=vars(pictures), engine=settings)

    monkeypatch.setattr(module, "Engine", engine)
    Fetch().open()
    name, expected = there
    assert given[place][name] != expected
    Fetch(**{option: value}).open()
    assert given[place][name] == expected


def test_no_option_is_left_out_of_that_test() -> None:
    (marks,) = test_each_option_reaches_what_heeds_it.pytestmark  # type: ignore[attr-defined]
    tested = {case[0] for case in marks.args[1]}
    assert tested == {option.name for option in fields(Fetch)} - {"engine"}


def test_an_expected_hash_is_text() -> None:
    stage = Fetch(verify_hash=("digest", "md5"))
    stage.check()
    assert stage.reads() == ("url", "digest")
    stage.check_columns({"url": pa.string(), "digest": pa.large_string()})
    with pytest.raises(ValueError, match=r"'digest', which is int64. hint: "):
        stage.check_columns({"url": pa.string(), "digest": pa.int64()})


def test_defaults_are_img2datasets_but_for_those_that_are_named() -> None:
    """People switch by changing one word, so a default that differs must be meant."""
    spec = importlib.util.find_spec("img2dataset")  # read, since importing it takes seconds
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "main.py").read_text())
    (download,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "download"
    )
    names = [argument.arg for argument in download.args.args][-len(download.args.defaults) :]
    theirs = {
        name: ast.literal_eval(default)
        for name, default in zip(names, download.args.defaults, strict=True)
        if isinstance(default, ast.Constant)
    }
    differing = {
        name for name, value in vars(Fetch()).items() if name in theirs and value != theirs[name]
    }
    assert differing == {
        "resize_mode", "extract_exif", "user_agent_token", "disallowed_header_directives",
        "min_image_size", "verify_hash",
    }  # fmt: skip
    assert theirs["timeout"] == Fetch().timeout


def test_stages_of_both_engines_travel_to_workers() -> None:
    for engine, rows in (("clip-pipe", 64), ("img2dataset", 512)):
        stage = pickle.loads(pickle.dumps(replace(Fetch(), engine=engine)))
        assert stage.batch_rows == rows


@pytest.mark.net
@pytest.mark.filterwarnings("ignore")
def test_hostile_files_each_get_one_reason_and_nothing_hangs(fetched: Fetched) -> None:
    files = {
        name: data
        for name, data in tar_files(shared_data("awkward.tar")).items()
        if name.startswith("files/")
    }

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=files[request.path[1:]])

    with serve(answer) as base:
        table = fetched([f"{base}/{name}" for name in files])
    assert not {kind for kind in kinds_of(table) if kind and "timeout" in kind}
    rows = dict(zip(files, table.to_pylist()))
    assert all((row["reason"] is None) == (row["image"] is not None) for row in rows.values())
    for (name, row), kind in zip(rows.items(), kinds_of(table)):
        if name.startswith(("files/not_an_image/", "files/svg/")):
            assert kind == "not_an_image", name
        if name.startswith("files/bomb_or_huge_header/") and "comment" not in name:
            assert kind in ("too_large.pixels", "decode"), name
        if row["image"] is not None:
            assert min(decode(row["image"]).shape[:2]) == 256, name
    assert sum(row["reason"] is None for row in rows.values()) > 100


def test_failures_that_last_are_kinds_that_are_documented() -> None:
    lasting = set(Fetch.lasting_errors)
    for kind in lasting:
        assert kind in KINDS or matches(kind, "http.")
        assert not is_transient(kind)
    assert {"http.404", "http.410", "http.403", "not_an_image", "hash", "opt_out"} < lasting
    assert not lasting & {"dns", "host_down", "robots", "http.429", "http.503", "decode.crashed"}
    for kind in Fetch.cures:
        assert kind in KINDS or matches(kind, "http.")
    assert set(fetch._PASSING) < set(KINDS)
