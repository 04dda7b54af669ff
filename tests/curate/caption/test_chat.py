"""Questions against a server that injects faults: each ends in an answer or a reason, in order."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest
from aiohttp import web

from curate.caption import chat
from curate.caption.chat import Answer, Endpoint, Question, Unreachable, ask
from tests.tiny.local_server import serve


def completion(text: Any, finish: str = "stop") -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]
    }


def endpoint(url: str, **changes: Any) -> Endpoint:
    settings = {
        "model": "m",
        "temperature": 0.5,
        "max_tokens": 20,
        "timeout_s": 30.0,
        "retries": 3,
        "max_concurrency": 8,
    }
    return Endpoint(url=f"{url}/v1/", **{**settings, **changes})


def questions(*texts: str) -> list[Question]:
    return [Question(key=f"{n}", text=text, seed=n) for n, text in enumerate(texts)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_FIRST_WAIT_S", 0.01)


@pytest.mark.net
def test_the_request_is_a_chat_completion() -> None:
    async def echo(request: web.Request) -> web.Response:
        seen = {
            "path": request.path,
            "auth": request.headers.get("Authorization"),
            **await request.json(),
        }
        return web.json_response(completion(json.dumps(seen)))

    with serve(echo) as base:
        (answer,) = ask(endpoint(base, api_key="secret"), questions("hello"))
        (without,) = ask(endpoint(base), questions("hello"))
    assert json.loads(answer.text) == {
        "path": "/v1/chat/completions",
        "auth": "Bearer secret",
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "max_tokens": 20,
        "seed": 0,
    }
    assert json.loads(without.text)["auth"] is None
    assert "secret" not in repr(endpoint(base, api_key="secret"))


@pytest.mark.net
def test_each_fault_has_its_reason_and_harms_no_other() -> None:
    async def faulty(request: web.Request) -> web.StreamResponse:
        text = (await request.json())["messages"][0]["content"]
        if text == "hang":
            await asyncio.sleep(60)
        if text == "drop":
            assert request.transport is not None
            request.transport.abort()
        if text.startswith("status "):
            return web.Response(
                status=int(text[7:]), text="<html>no</html>", content_type="text/html"
            )
        bodies: dict[str, Any] = {
            "fine": web.json_response(completion(" yes ")),
            "cut": web.json_response(completion("a photo of", "length")),
            "none": web.json_response(completion(None)),
            "no choices": web.json_response({"choices": []}),
            "list": web.json_response([1, 2]),
            "junk": web.Response(text="{not json"),
            "huge": web.Response(body=b"x" * (3 << 20)),
        }
        return bodies.get(text, web.json_response(completion("?")))

    asked = [
        "fine",
        "hang",
        "drop",
        "status 500",
        "status 400",
        "status 429",
        "cut",
        "none",
        "no choices",
        "list",
        "junk",
        "huge",
        "fine",
    ]
    with serve(faulty) as base:
        began = time.monotonic()
        found = ask(endpoint(base, timeout_s=1.0, retries=1), questions(*asked))
        assert time.monotonic() - began < 30
    faults = [
        None,
        "timeout",
        "connection",
        "http.500",
        "http.400",
        "http.429",
        "finish.length",
        "empty",
        "bad_answer",
        "bad_answer",
        "bad_answer",
        "bad_answer",
        None,
    ]
    assert [answer.fault for answer in found] == faults
    assert found[0] == found[-1] == Answer(text=" yes ")
    assert "<html>" in found[3].detail


@pytest.mark.net
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    hits: list[float] = []

    async def twice(_: web.Request) -> web.Response:
        hits.append(time.monotonic())
        return web.Response(status=status) if len(hits) < 3 else web.json_response(completion("ok"))

    with serve(twice) as base:
        assert ask(endpoint(base), questions("x")) == [Answer(text="ok")]
    assert len(hits) == 3


@pytest.mark.net
@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_cannot_pass_is_asked_once(status: int) -> None:
    hits: list[int] = []

    async def never(_: web.Request) -> web.Response:
        hits.append(1)
        return web.Response(status=status)

    with serve(never) as base:
        assert ask(endpoint(base), questions("x"))[0].fault == f"http.{status}"
    assert hits == [1]


@pytest.mark.net
def test_retry_after_is_waited_for() -> None:
    hits: list[float] = []

    async def later(_: web.Request) -> web.Response:
        hits.append(time.monotonic())
        return (
            web.Response(status=429, headers={"Retry-After": "0.4"})
            if len(hits) == 1
            else web.json_response(completion("ok"))
        )

    with serve(later) as base:
        assert ask(endpoint(base), questions("x"))[0].text == "ok"
    assert 0.4 <= hits[1] - hits[0] < 20


def test_retry_after_is_read_as_seconds_or_date() -> None:
    assert chat._retry_after_s("3") == 3.0
    assert chat._retry_after_s(formatdate(time.time() + 300, usegmt=True)) == pytest.approx(
        300, abs=20
    )
    assert chat._retry_after_s(formatdate(time.time() - 30, usegmt=True)) == 0.0
    assert chat._retry_after_s("soon") is None
    assert chat._retry_after_s(None) is None


@pytest.mark.net
def test_no_more_than_max_concurrency_are_in_flight() -> None:
    now, most = 0, 0

    async def slow(_: web.Request) -> web.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        until_s = time.monotonic() + 60
        while most < 5 and time.monotonic() < until_s:  # none is answered before five have met
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        now -= 1
        return web.json_response(completion("ok"))

    with serve(slow) as base:
        ask(endpoint(base, max_concurrency=5, timeout_s=90.0), questions(*["x"] * 20))
    assert most == 5


@pytest.mark.net
def test_a_dead_endpoint_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    once = chat._Client._once

    async def counted(self: chat._Client, session: Any, question: Question) -> Answer:
        asked.append(question.key)
        return await once(self, session, question)

    monkeypatch.setattr(chat._Client, "_once", counted)
    with socket.socket() as taken:  # nobody listens, and nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match=r"[Cc]onnect"):
            ask(endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}"), questions(*["x"] * 500))
    assert len(asked) < 100  # those in flight, each with its retries, and few that were next
