"""What a downloader must survive, each through the whole stage: the stated outcome, in time and in memory.

The table of hostile answers that the design was drawn up against (measured on img2dataset first). Rows
about shards are in tests/pretrain/stream and tests/curate/shard; captions in tests/curate/source.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import io
import os
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, features

from curate.download.fetch import Fetch
from curate.score.picture import decode
from tests.bench.contenders import children_of
from tests.tiny.pictures import corner_colours, encoded, quadrants, with_orientation

pytestmark = pytest.mark.net
PREFIX = "error.download.fetch."
PHOTO = encoded(quadrants(400, 300), "JPEG", quality=95)
OK = b"HTTP/1.1 200 OK\r\n"
TIMEOUT_S = 3.0  # a drip and a silence have all of it; so has whatever is slow
SLACK_S = 40.0  # for a busy machine; what hangs does so for minutes
Sends = Callable[[bytes], None]


def whole(body: bytes, status: str = "200 OK", *lines: str) -> bytes:
    """One answer with an honest length."""
    head = "".join(
        f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines)
    )
    return head.encode() + b"\r\n" + body


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has a few of its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(min(width * 3 + 1, 60_001) * min(height, 100)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(pixels: np.ndarray, kind: str, mode: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def animation(frames: int, side: int = 64) -> bytes:
    """The first frame is the quadrants, the others are grey."""
    pages = [
        Image.fromarray(quadrants(side, side)),
        *(Image.new("RGB", (side, side), (n % 256,) * 3) for n in range(frames - 1)),
    ]
    file = io.BytesIO()
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def drip(start: bytes, piece: bytes) -> Callable[[Sends], None]:
    def send_all(send: Sends) -> None:
        send(start)
        while True:
            send(piece)
            time.sleep(0.05)

    return send_all


def endless(start: bytes, piece: bytes) -> Callable[[Sends], None]:
    def send_all(send: Sends) -> None:
        send(start)
        sent = 0
        while sent < 1 << 30:
            send(piece)
            sent += len(piece)

    return send_all


def silent(_: Sends) -> None:
    time.sleep(200)


Answers = dict[str, "bytes | Callable[[Sends], None]"]


@contextlib.contextmanager
def web(answers: Answers) -> Iterator[tuple[str, collections.Counter[str]]]:
    """Base URL of a server on loopback, and how often each path was asked for."""
    asked: collections.Counter[str] = collections.Counter()

    class One(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while line := self.rfile.readline():
                    while self.rfile.readline().strip():
                        pass
                    path = line.split()[1].decode("latin-1")
                    asked[path] += 1
                    found = answers.get(path, whole(b"", "404 Not Found"))
                    if callable(found):
                        found(self.request.sendall)
                        return
                    self.request.sendall(found)
                    if found.startswith(b"HTTP/1.1 200 OK\r\nX-Close"):
                        return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, allow_reuse_address, request_queue_size, block_on_close = (
            True,
            True,
            64,
            False,
        )

    with Server(("127.0.0.1", 0), One) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


def fetched(urls: list[str | None], **options: Any) -> list[dict[str, Any]]:
    """Rows with ``kind`` (None for a picture), by a stage that was opened for them."""
    stage = Fetch(
        **{
            "allow_hosts": ("127.0.0.1",),
            "timeout": 60.0,
            "first_byte_timeout": 60.0,
            **options,
        }
    )
    stage.check()
    names = pa.array([f"{number:032x}" for number in range(len(urls))])
    rows: list[dict[str, Any]] = stage.process(
        pa.table({"uid": names, "url": pa.array(urls, pa.string())}), stage.open()
    ).to_pylist()
    for row in rows:
        row["kind"] = row["reason"] and row["reason"].removeprefix(PREFIX)
    return rows


def kinds_of(answers: Answers, **options: Any) -> dict[str, str | None]:
    with web(answers) as (base, _):
        rows = fetched([base + path for path in answers], **options)
    return {path: row["kind"] for path, row in zip(answers, rows)}


@contextlib.contextmanager
def most_bytes() -> Iterator[Callable[[], tuple[int, int]]]:
    """(peak growth of this process, peak of any child) since the block began, in bytes."""

    def figure(pid: int | str, name: str) -> int:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return 0
        return next(
            (int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name)), 0
        )

    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        pytest.skip("the peak memory of a process cannot be reset here")
    before = figure("self", "VmRSS")

    def told() -> tuple[int, int]:
        children = [figure(pid, "VmHWM") for pid in children_of(os.getpid())]
        return figure("self", "VmHWM") - before, max(children, default=0)

    yield told


# Path -> (answer, kind of its refusal, None where the picture comes in).
HOSTILE: dict[str, tuple[Any, str | None]] = {
    "/drip/body": (drip(OK + b"Content-Length: 100000\r\n\r\n", b"\xff"), "timeout.total"),
    "/drip/header": (drip(OK, b"X: y\r\n"), "timeout.total"),
    "/silent": (silent, "timeout"),
    "/gzip": (whole(gzip.compress(PHOTO), "200 OK", "Content-Encoding: gzip"), None),
    "/gzip/bomb": (whole(gzip.compress(bytes(64 << 20)), "200 OK", "Content-Encoding: gzip"), "too_large.bytes"),
    "/coded/in/brotli": (whole(b"xxxx", "200 OK", "Content-Encoding: br"), "protocol"),
    "/coded/in/nothing": (whole(PHOTO, "200 OK", "Content-Encoding: UTF-8"), None),
    "/announced": (OK + b"Content-Length: 99999999999\r\n\r\n", "too_large.bytes"),
    "/bomb.png": (whole(png_header(20_000, 20_000)), "too_large.pixels"),
    "/strip.png": (whole(png_header(20_000, 20)), "too_large.aspect"),
    "/line.png": (whole(png_header(2, 20_000)), "too_small"),
    "/pixel.gif": (whole(encoded(np.zeros((1, 1), np.uint8), "GIF")), "too_small"),
    "/frames.gif": (whole(animation(40)), "too_large.frames"),
    "/to/private": (whole(b"", "302 Found", "Location: http://10.0.0.1/x.jpg"), "forbidden_address"),
    "/to/metadata": (whole(b"", "302 Found", "Location: http://169.254.169.254/latest"), "forbidden_address"),
    "/to/localhost": (whole(b"", "302 Found", "Location: http://localhost/x.jpg"), "forbidden_address"),
    "/to/mapped": (whole(b"", "302 Found", "Location: http://[::ffff:127.0.0.1]/"), "forbidden_address"),
    "/to/file": (whole(b"", "302 Found", "Location: file:///etc/passwd"), "scheme"),
    "/loop": (whole(b"", "302 Found", "Location: /loop"), "redirect"),
    "/nowhere": (whole(b"", "302 Found"), "redirect"),
    "/429": (whole(b"", "429 Too Many Requests", "Retry-After: 0"), "http.429"),
    "/503": (whole(b"", "503 Service Unavailable"), "http.503"),
    "/404": (whole(b"", "404 Not Found"), "http.404"),
    "/410": (whole(b"", "410 Gone"), "http.410"),
    "/negative": (OK + b"Content-Length: -1\r\n\r\n" + PHOTO, "protocol"),
    "/two lengths": (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "protocol"),
    "/not http": (b"SSH-2.0-OpenSSH_9.2\r\n", "protocol"),
    "/short": (OK + b"X-Close: 1\r\nContent-Length: 999999\r\n\r\n" + PHOTO, "connection"),
    "/cut.jpg": (whole(PHOTO[: len(PHOTO) // 2]), "decode"),
    "/page.jpg": (whole(b"<!DOCTYPE html><h1>Gone</h1>", "200 OK", "Content-Type: image/jpeg"), "not_an_image"),
    "/empty": (whole(b""), "not_an_image"),
    "/drawing.svg": (whole(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not_an_image"),
    "/later": (whole(PHOTO, "200 OK", "X-Robots-Tag: unavailable_after: 1 Jan 2090, noai"), "opt_out"),
    "/second line": (whole(PHOTO, "200 OK", "X-Robots-Tag: all", "X-Robots-Tag: noimageai"), "opt_out"),
    "/to us": (whole(PHOTO, "200 OK", "X-Robots-Tag: clip-pipe: noai"), "opt_out"),
    "/to others": (whole(PHOTO, "200 OK", "X-Robots-Tag: otherbot: noai"), None),
    "/reserved": (whole(PHOTO, "200 OK", "tdm-reservation: 1"), "opt_out"),
    "/not reserved": (whole(PHOTO, "200 OK", "tdm-reservation: 0"), None),
    "/gr%C3%B6%C3%9Fe.jpg": (whole(PHOTO), None),
    "/junk.jpg": (whole(PHOTO + bytes(5_000_000)), None),
}  # fmt: skip


def test_every_hostile_answer_has_its_outcome_within_the_time_allowed() -> None:
    answers = {path.replace(" ", "%20"): answer for path, (answer, _) in HOSTILE.items()}
    fetched([None])  # what is imported and started once does not count
    began_s = time.monotonic()
    with most_bytes() as told:
        found = kinds_of(answers, max_frames=30, timeout=TIMEOUT_S, first_byte_timeout=TIMEOUT_S)
        own, child = told()
    assert time.monotonic() - began_s < TIMEOUT_S + SLACK_S
    kinds = {path: kind for path, (_, kind) in zip(answers, HOSTILE.values())}
    for path, kind in kinds.items():
        if kind == "timeout":
            assert (found[path] or "").startswith("timeout."), path
        else:
            assert found[path] == kind, path
    assert own < 160 << 20  # the server's own bodies, two of them at the cap of 32 MiB
    assert child < 300 << 20


def test_urls_that_are_none_of_the_webs() -> None:
    urls = {
        None: "bad_url", "": "bad_url", "http://": "bad_url", "file:///etc/passwd": "scheme", "data:image/png;base64,AAAA": "scheme",
        "ftp://127.0.0.1/x": "scheme", "http://10.0.0.1/": "forbidden_address", "http://[::1]/": "forbidden_address",
        "http://0x7f000001/": "forbidden_address", "http://nothing.invalid/": "dns", "http://127.0.0.1:1/": "refused",
    }  # fmt: skip
    rows = fetched(list(urls), allow_hosts=("127.0.0.1:1",))
    assert {row_url: row["kind"] for row_url, row in zip(urls, rows)} == urls


def test_an_endless_body_takes_no_more_memory_than_the_cap() -> None:
    """img2dataset: 1.9 GB for a body of one."""
    fetched([None])
    forms: Answers = {
        "/close": endless(OK + b"\r\n", b"\xff\xd8\xff" + bytes(1 << 16)),
        "/chunked": endless(
            OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        ),
    }
    for path, answer in forms.items():
        with most_bytes() as told:
            assert kinds_of({path: answer}) == {path: "too_large.bytes"}
            assert told()[0] < 72 << 20


def test_a_header_decides_before_any_pixel_is_decoded() -> None:
    """img2dataset: 765 MB for 20000 x 20000 px, 1.9 GB for 2 x 20000 px."""
    fetched([None])
    answers: Answers = {
        "/bomb.png": whole(png_header(20_000, 20_000)),
        "/line.png": whole(png_header(2, 20_000)),
        "/wide.png": whole(png_header(20_000, 20)),
    }
    with most_bytes() as told:
        found = kinds_of(answers, min_image_size=0)
        own, child = told()
    assert list(found.values()) == ["too_large.pixels", "too_large.aspect", "too_large.aspect"]
    assert own < 40 << 20
    assert child < 200 << 20


def test_what_will_not_pass_is_asked_for_once_and_what_may_pass_again() -> None:
    answers: Answers = {
        "/404": whole(b"", "404 Not Found"), "/410": whole(b"", "410 Gone"), "/page": whole(b"<html>"),
        "/503": whole(b"", "503 Busy", "Retry-After: 0"), "/cut": whole(PHOTO[:2000]),
    }  # fmt: skip
    with web(answers) as (base, asked):
        fetched([base + path for path in answers], retries=2)
    assert asked == {"/404": 1, "/410": 1, "/page": 1, "/503": 3, "/cut": 1}


def test_a_url_of_many_rows_is_fetched_once_and_each_row_gets_it() -> None:
    with web({"/a.jpg": whole(PHOTO), "/gone": whole(b"", "404 Not Found")}) as (base, asked):
        rows = fetched([base + "/a.jpg", base + "/gone"] * 20)
    assert asked == {"/a.jpg": 1, "/gone": 1}
    assert [row["kind"] for row in rows] == [None, "http.404"] * 20
    assert len({row["image"] for row in rows[::2]}) == 1


def test_robots_txt_is_asked_for_once_and_obeyed_where_wanted() -> None:
    answers: Answers = {
        "/robots.txt": whole(b"User-agent: clip-pipe\nDisallow: /private/\n"),
        "/private/a.jpg": whole(PHOTO), "/private/b.jpg": whole(PHOTO), "/open.jpg": whole(PHOTO),
    }  # fmt: skip
    paths = [path for path in answers if path != "/robots.txt"]
    with web(answers) as (base, asked):
        rows = fetched([base + path for path in paths], robots_txt=True)
    assert [row["kind"] for row in rows] == ["robots", "robots", None]
    assert asked == {"/robots.txt": 1, "/open.jpg": 1}


def test_a_host_that_is_down_is_left_alone() -> None:
    """A list with thousands of links of a dead host: most are not tried."""
    rows = fetched(
        [f"http://127.0.0.1:1/{number}.jpg" for number in range(300)], requests_per_host=4
    )
    kinds = collections.Counter(row["kind"] for row in rows)
    assert set(kinds) == {"refused", "host_down"}
    assert kinds["host_down"] > 200


def test_odd_pictures_look_as_a_viewer_shows_them() -> None:
    pixels = quadrants(320, 320)
    alpha = np.dstack([np.zeros((320, 320, 3), np.uint8), np.zeros((320, 320), np.uint8)])
    pictures = {
        "16-bit grey": encoded(np.full((320, 320), 0x8000, np.uint16)),
        "transparent": encoded(alpha),
        "CMYK": saved(pixels, "JPEG", "CMYK", quality=95),
        "palette": saved(pixels, "PNG", "P"),
        "animated": animation(3, 320),
        "turned": with_orientation(pixels, 6),
        **({"AVIF": saved(pixels, "AVIF", "RGB")} if features.check("avif") else {}),
    }
    with web({f"/{number}": whole(body) for number, body in enumerate(pictures.values())}) as (
        base,
        _,
    ):
        rows = dict(zip(pictures, fetched([f"{base}/{number}" for number in range(len(pictures))])))
    assert {name: row["kind"] for name, row in rows.items()} == dict.fromkeys(pictures)
    shown = {name: decode(row["image"]) for name, row in rows.items()}
    assert shown.pop("16-bit grey").mean() == pytest.approx(127.5, abs=1.5)
    assert shown.pop("transparent").min() > 250  # on white
    assert corner_colours(shown.pop("turned")) == "brwg"
    assert {name: corner_colours(pixels) for name, pixels in shown.items()} == dict.fromkeys(
        shown, "rgbw"
    )
