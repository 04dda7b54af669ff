"""Servers on loopback for tests: an aiohttp application, or raw bytes written by a function."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiohttp import web

Handler = Callable[[Any], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def serve(handler: Handler) -> Iterator[str]:
    """``http://127.0.0.1:port`` of a server that answers every request by ``handler``."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    started = threading.Event()

    async def start() -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.append(runner.addresses[0][1])
        started.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{ready[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket], None], scheme: str = "http") -> Iterator[str]:
    """``http://127.0.0.1:port`` of a server that gives each connection to ``answer``.

    After the request was read; with another ``scheme``, at once.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if scheme == "http":
                connection.recv(1 << 16)
            answer(connection)

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
