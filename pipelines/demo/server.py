"""The demo world on loopback: its pictures with their faults, and a grammar-driven chat endpoint.

    GET  /photos/<name>.jpg        the picture, or what is planted there: 404, drip, HTML, half a file
    GET  /v1/models                one model, "grammar-paraphraser"
    POST /v1/chat/completions      OpenAI-compatible; stands in for the user's language model

The chat endpoint reads the caption from the last user message, alone on its last line after
"caption: ", and answers with a paraphrase that depends on (caption, seed) only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.demo.paraphrase import paraphrase
from pipelines.demo.render import jpeg
from pipelines.demo.world import Asset, World

if TYPE_CHECKING:
    from aiohttp import web

MODEL = "grammar-paraphraser"
CAPTION_MARK = "caption: "
TRUNCATED_FRAC = 0.45
SLOW_BYTE_EVERY_S = (
    0.5  # a slow link keeps its reader waiting, byte by byte, until the reader gives up
)
_RENDER_THREADS = 2
_KEEP_BYTES = 256 << 20
_MAX_CHOICES = 16
_START_LIMIT_S = 30.0
_STOP_LIMIT_S = 10.0
_HTML = b"<!doctype html><html><head><title>Gallery</title></head><body><p>This picture has moved.</p></body></html>"


class BadRequest(Exception):
    """A chat request that an OpenAI-compatible server refuses. ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Gallery:
    """Renders on demand and remembers, up to _KEEP_BYTES, since raw and curated runs ask twice."""

    world: World
    pool: ThreadPoolExecutor
    kept: dict[str, bytes] = field(default_factory=dict)
    kept_bytes: int = 0

    async def image(self, path: str, asset: Asset) -> bytes:
        data = self.kept.get(path)
        if data is None:
            data = await asyncio.get_running_loop().run_in_executor(self.pool, jpeg, asset.picture)
            if self.kept_bytes + len(data) <= _KEEP_BYTES and path not in self.kept:
                self.kept[path] = data
                self.kept_bytes += len(data)
        return data

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The picture under the request's path, or the fault that is planted there."""
        from aiohttp import web

        asset = self.world.assets.get(request.path)
        if asset is None or asset.answer == "missing":
            return web.Response(status=404, text="Not Found")
        if asset.answer == "html":
            return web.Response(body=_HTML, content_type="image/jpeg")
        data = await self.image(request.path, asset)
        if asset.answer == "slow":
            return await _drip(request, data)
        if asset.answer == "truncated":
            data = data[: int(len(data) * TRUNCATED_FRAC)]
        return web.Response(body=data, content_type="image/jpeg")


async def _drip(request: web.Request, data: bytes) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(
        headers={"Content-Type": "image/jpeg", "Content-Length": str(len(data))}
    )
    with suppress(ConnectionResetError):  # the reader gave up, as it should
        await response.prepare(request)
        for position in range(len(data)):
            await response.write(data[position : position + 1])
            await asyncio.sleep(SLOW_BYTE_EVERY_S)
    return response


def complete(body: dict[str, Any]) -> dict[str, Any]:
    """The answer to one chat request, as OpenAI's ``chat.completion`` object. Raises BadRequest."""
    if body.get("model") != MODEL:
        raise BadRequest(
            f"model {body.get('model')!r} is not served here. hint: use {MODEL!r}", 404
        )
    if body.get("stream"):
        raise BadRequest("this endpoint does not stream. hint: leave `stream` out")
    caption = _caption_of(body.get("messages"))
    seed, choices, limit = (
        _whole_number(body, name, default)
        for name, default in (("seed", 0), ("n", 1), ("max_tokens", 0))
    )
    if not 1 <= choices <= _MAX_CHOICES:
        raise BadRequest(f"n is {choices}. hint: 1 to {_MAX_CHOICES}")
    answers = [
        _choice(number, paraphrase(caption, seed + number), limit) for number in range(choices)
    ]
    asked = sum(len(str(message.get("content", "")).split()) for message in body["messages"])
    said = sum(len(answer["message"]["content"].split()) for answer in answers)
    return {
        "id": "chatcmpl-" + hashlib.sha256(f"{seed} {choices} {caption}".encode()).hexdigest()[:24],
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": answers,
        "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
    }


def _choice(number: int, text: str, max_tokens: int) -> dict[str, Any]:
    """One choice; a token is a word here, and ``max_tokens`` of 0 means no limit."""
    words = text.split()
    cut = 0 < max_tokens < len(words)
    return {
        "index": number,
        "message": {"role": "assistant", "content": " ".join(words[:max_tokens]) if cut else text},
        "finish_reason": "length" if cut else "stop",
    }


def _whole_number(body: dict[str, Any], name: str, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{name} is {value!r}. hint: a whole number")
    return value


def _caption_of(messages: Any) -> str:
    """The caption in the last user message: its last line, after "caption: "."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRequest(
            "`messages` is not a list of objects. hint: [{'role': 'user', 'content': ...}]"
        )
    asked = [message.get("content") for message in messages if message.get("role") == "user"]
    if not asked:
        raise BadRequest("no user message. hint: put the caption in the last user message")
    text = asked[-1]
    if isinstance(text, list):
        text = "\n".join(str(piece.get("text", "")) for piece in text if isinstance(piece, dict))
    last_line = str(text).rstrip("\n").rpartition("\n")[2]
    if not last_line.startswith(CAPTION_MARK):
        raise BadRequest(
            f"the last user message ends with {last_line[:80]!r}. hint: its last line must be '{CAPTION_MARK}...'"
        )
    return last_line[len(CAPTION_MARK) :].strip()


async def _chat(request: web.Request) -> web.Response:
    from aiohttp import web

    try:
        body = json.loads(await request.read())
        if not isinstance(body, dict):
            raise BadRequest("the body is not a JSON object. hint: {'model': ..., 'messages': ...}")
        return web.json_response(complete(body))
    except ValueError as fault:
        return _refusal(web, f"the body is not JSON: {fault}. hint: send application/json", 400)
    except BadRequest as fault:
        return _refusal(web, str(fault), fault.status)


def _refusal(web: Any, message: str, status: int) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error", "code": status}},
        status=status,
    )


async def _models(request: web.Request) -> web.Response:
    from aiohttp import web

    return web.json_response(
        {
            "object": "list",
            "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "clip-pipe demo"}],
        }
    )


async def _run(world: World, port: int, ready: Future[int], stop: asyncio.Event) -> None:
    """Serve until ``stop``; ``ready`` gets the port or the reason why there is none."""
    from aiohttp import web

    with ThreadPoolExecutor(_RENDER_THREADS, thread_name_prefix="demo-render") as pool:
        app = web.Application()
        app.router.add_get("/v1/models", _models)
        app.router.add_post("/v1/chat/completions", _chat)
        app.router.add_get("/photos/{name}", _Gallery(world, pool).answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
            await site.start()
            ready.set_result(runner.addresses[0][1])
            await stop.wait()
        except OSError as fault:
            ready.set_exception(fault)
        finally:
            await runner.cleanup()


@contextmanager
def serve(world: World, port: int = 0) -> Iterator[str]:
    """Serve the world on 127.0.0.1 in a thread; gives the base URL, without a slash at its end.

    ``port`` 0 takes any free one. A row's uid holds its URL, so give a fixed port where two runs
    must decide alike. Raises OSError where the port is taken.
    """
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    ready: Future[int] = Future()

    def work() -> None:
        try:
            loop.run_until_complete(_run(world, port, ready, stop))
        except BaseException as fault:
            if not ready.done():
                ready.set_exception(fault)
            raise

    thread = threading.Thread(target=work, name="demo-server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{ready.result(_START_LIMIT_S)}"
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(_STOP_LIMIT_S)
        if not thread.is_alive():
            loop.close()
