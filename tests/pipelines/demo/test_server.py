"""The server over real sockets: pictures, each planted fault, the chat endpoint and its refusals."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pipelines.demo import server
from pipelines.demo.paraphrase import REFUSAL, paraphrase
from pipelines.demo.render import jpeg
from pipelines.demo.server import BadRequest, complete, serve
from pipelines.demo.world import World, build

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def world() -> World:
    return build(0, 300)


@pytest.fixture(scope="module")
def base(world: World) -> Iterator[str]:
    with serve(world) as base_url:
        yield base_url


def path_of(world: World, fault: str) -> str:
    return next(row.path for row in world.rows if row.fault == fault and row.path)


def ask(
    base: str, method: str, path: str, body: Any = None, timeout_s: float = 60.0
) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=timeout_s)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read()
    finally:
        connection.close()


def chat(caption: str, **fields: Any) -> dict[str, Any]:
    message = f"Rewrite the caption below.\ncaption: {caption}"
    return {
        "model": server.MODEL,
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": message}],
        **fields,
    }


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


def test_a_clean_link_gives_its_picture(world: World, base: str):
    path = path_of(world, "")
    assert ask(base, "GET", path) == (200, "image/jpeg", jpeg(world.assets[path].picture))


def test_duplicate_images_have_equal_bytes_under_other_urls(world: World, base: str):
    row = next(row for row in world.rows if row.fault == "duplicate-image")
    first = world.rows[row.first_row]
    assert row.path != first.path
    digests = {
        hashlib.sha256(ask(base, "GET", path)[2]).hexdigest()
        for path in (row.path, first.path)
        if path
    }
    assert len(digests) == 1


def test_dead_and_unknown_links_are_404(world: World, base: str):
    assert ask(base, "GET", path_of(world, "dead-link"))[0] == 404
    assert ask(base, "GET", "/photos/none.jpg")[0] == 404
    assert ask(base, "GET", "/")[0] == 404


def test_html_comes_as_jpeg(world: World, base: str):
    status, kind, data = ask(base, "GET", path_of(world, "html-as-jpeg"))
    assert (status, kind) == (200, "image/jpeg")
    assert data.startswith(b"<!doctype html>")


def test_truncated_files_are_whole_answers_that_do_not_decode(world: World, base: str):
    cv2 = pytest.importorskip("cv2")
    import numpy as np

    path = path_of(world, "truncated-jpeg")
    status, kind, data = ask(base, "GET", path)
    assert (status, kind) == (200, "image/jpeg")
    whole = jpeg(world.assets[path].picture)
    assert whole.startswith(data)
    assert 0.3 < len(data) / len(whole) < 0.6
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None
    assert cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR) is not None


def test_a_slow_link_sends_on_and_on_but_holds_nobody_else(world: World, base: str):
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as link:
        link.sendall(f"GET {path_of(world, 'slow-link')} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        started = time.monotonic()
        received = b""
        while time.monotonic() - started < 1.3 or received.endswith(b"\r\n\r\n"):
            received += link.recv(4096)
        passed_s = time.monotonic() - started
        assert ask(base, "GET", path_of(world, ""))[0] == 200
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    assert 1 <= len(body) <= passed_s / server.SLOW_BYTE_EVERY_S + 3, "far from a picture"


def test_many_requests_at_once_are_all_answered(world: World, base: str):
    paths = [path for path, asset in world.assets.items() if asset.answer == "image"][:80]
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda path: ask(base, "GET", path), paths * 2))
    assert {status for status, _, _ in answers} == {200}
    assert [a[2] for a in answers[:80]] == [a[2] for a in answers[80:]]


def test_a_reader_who_gives_up_is_no_error(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(server, "SLOW_BYTE_EVERY_S", 0.02)
    with serve(world) as base_url:
        host, port = base_url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as link:
            link.sendall(
                f"GET {path_of(world, 'slow-link')} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            )
            link.recv(10)
        time.sleep(0.2)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_stopping_is_quick_even_with_a_slow_reader_and_leaves_no_thread(world: World):
    before = threading.active_count()
    with serve(world) as base_url:
        host, port = base_url.removeprefix("http://").split(":")
        link = socket.create_connection((host, int(port)), timeout=60)
        link.sendall(f"GET {path_of(world, 'slow-link')} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        link.recv(10)
        started = time.monotonic()
    assert time.monotonic() - started < server._STOP_LIMIT_S  # where its thread is given up
    link.close()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=20)


def test_a_taken_port_is_an_error(world: World, base: str):
    with (
        pytest.raises(OSError, match=r"address already in use"),
        serve(world, int(base.rpartition(":")[2])),
    ):
        pytest.fail("served on a taken port")


def test_chat_gives_the_paraphrase_of_the_caption(base: str):
    status, kind, data = ask(
        base, "POST", "/v1/chat/completions", chat("two red stars on sand", seed=4)
    )
    answer = json.loads(data)
    assert (status, kind) == (200, "application/json")
    assert text_of(answer) == paraphrase("two red stars on sand", 4)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["object"] == "chat.completion"
    again = json.loads(
        ask(base, "POST", "/v1/chat/completions", chat("two red stars on sand", seed=4))[2]
    )
    assert again == answer


def test_models_names_the_one_model(base: str):
    answer = json.loads(ask(base, "GET", "/v1/models")[2])
    assert [model["id"] for model in answer["data"]] == [server.MODEL]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"{", "not JSON"), ([1], "not a JSON object"), ({"model": server.MODEL}, "messages")],
)
def test_bad_chat_requests_are_400_with_a_message(base: str, body: Any, words: str):
    status, _, data = ask(base, "POST", "/v1/chat/completions", body)
    assert status == 400
    assert words in json.loads(data)["error"]["message"]


def test_another_model_is_404(base: str):
    assert (
        ask(base, "POST", "/v1/chat/completions", chat("red star") | {"model": "gpt-4"})[0] == 404
    )


def test_seed_and_n_give_other_sentences():
    one = complete(chat("two red stars on sand", n=6, seed=10))
    texts = [choice["message"]["content"] for choice in one["choices"]]
    assert len(set(texts)) > 3
    assert texts[2] == text_of(complete(chat("two red stars on sand", seed=12)))


def test_max_tokens_cuts_and_says_so():
    answer = complete(chat("two red stars on sand", max_tokens=3))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(text_of(answer).split()) == 3


def test_only_the_last_line_of_the_last_user_message_is_the_caption():
    body = chat("blue ring")
    body["messages"][1]["content"] = "caption: red circle\ncaption: blue ring"
    assert text_of(complete(body)) == paraphrase("blue ring", 0)
    body["messages"].append({"role": "assistant", "content": "caption: green star"})
    assert text_of(complete(body)) == paraphrase("blue ring", 0)
    body["messages"][1]["content"] = [{"type": "text", "text": "caption: blue ring"}]
    assert text_of(complete(body)) == paraphrase("blue ring", 0)


def test_junk_gets_an_apology():
    assert text_of(complete(chat("IMG_0001.jpg"))) == REFUSAL


@pytest.mark.parametrize(
    "change",
    [
        {"stream": True},
        {"n": 0},
        {"n": 99},
        {"seed": "x"},
        {"max_tokens": 1.5},
        {"messages": []},
        {"messages": [{"role": "user", "content": "hi"}]},
    ],
)
def test_requests_it_cannot_serve_are_refused(change: dict[str, Any]):
    with pytest.raises(BadRequest, match="hint: "):
        complete(chat("red star") | change)
