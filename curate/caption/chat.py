"""Many questions to an OpenAI-compatible chat endpoint at once: bounded, retried, never fatal by one.

Every question ends in an Answer, with its text or with a reason. Retried are connection faults,
time-outs, 408, 409, 425, 429 and 5xx, with exponential back-off, jitter from the question's own key
and the server's Retry-After.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.contract.draw import draw

_RETRIED = frozenset({408, 409, 425, 429})
_FIRST_WAIT_S = 0.5
_MOST_WAIT_S = 60.0
_MAX_ANSWER_BYTES = 1 << 20


class Unreachable(Exception):
    """No question has been answered by the endpoint in any way. The message has the cause."""


@dataclass(frozen=True)
class Question:
    """One request. ``key`` names it for the jitter; ``seed`` goes to the server."""

    key: str
    text: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """The model's words, or the reason why there are none."""

    text: str = ""
    fault: str | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where and how to ask. ``url`` ends before ``/chat/completions``."""

    url: str
    model: str
    temperature: float
    max_tokens: int
    timeout_s: float
    retries: int
    max_concurrency: int
    api_key: str = field(default="", repr=False)


class _TryAgain(Exception):
    def __init__(self, fault: str, detail: str, wait_s: float | None = None) -> None:
        super().__init__(detail)
        self.fault = fault
        self.wait_s = wait_s


def ask(endpoint: Endpoint, questions: Sequence[Question]) -> list[Answer]:
    """An Answer for each question, in order. Raises Unreachable if nothing ever answered."""
    return asyncio.run(_Client(endpoint).ask_all(questions))


class _Client:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.url = endpoint.url.rstrip("/") + "/chat/completions"
        self.heard = False  # has the endpoint sent any HTTP answer?

    async def ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        import aiohttp

        headers = (
            {"Authorization": f"Bearer {self.endpoint.api_key}"} if self.endpoint.api_key else {}
        )
        connector = aiohttp.TCPConnector(limit=self.endpoint.max_concurrency)
        timeout = aiohttp.ClientTimeout(total=self.endpoint.timeout_s)
        gate = asyncio.Semaphore(self.endpoint.max_concurrency)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            tasks = [
                asyncio.ensure_future(self._ask(session, gate, question)) for question in questions
            ]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self, session: Any, gate: asyncio.Semaphore, question: Question) -> Answer:
        async with gate:
            for attempt in range(self.endpoint.retries + 1):
                try:
                    return await self._once(session, question)
                except _TryAgain as fault:
                    if attempt == self.endpoint.retries:
                        if fault.fault == "connection" and not self.heard:
                            raise Unreachable(str(fault)) from fault
                        return Answer(fault=fault.fault, detail=str(fault))
                    await asyncio.sleep(_wait_s(fault, attempt, question.key))
        raise AssertionError("unreachable: the last attempt returns")

    async def _once(self, session: Any, question: Question) -> Answer:
        """One POST. Raises _TryAgain for what may pass."""
        import aiohttp

        try:
            async with session.post(self.url, json=self._body(question)) as response:
                self.heard = True
                raw = await _read(response)
        except TimeoutError as fault:
            raise _TryAgain("timeout", f"no answer within {self.endpoint.timeout_s} s") from fault
        except aiohttp.ClientError as fault:
            raise _TryAgain("connection", f"{type(fault).__name__}: {fault}") from fault
        if response.status == 200:
            return _parsed(raw)
        detail = raw[:300].decode("utf-8", "replace")
        if response.status in _RETRIED or response.status >= 500:
            wait_s = _retry_after_s(response.headers.get("Retry-After"))
            raise _TryAgain(f"http.{response.status}", detail, wait_s)
        return Answer(fault=f"http.{response.status}", detail=detail)

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": self.endpoint.temperature,
            "max_tokens": self.endpoint.max_tokens,
            "seed": question.seed,
        }


async def _read(response: Any) -> bytes:
    """The body up to a cap; what is longer is no chat answer and fails to parse."""
    body = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return bytes(body)


def _parsed(raw: bytes) -> Answer:
    """The first choice of a chat completion."""
    try:
        choice = json.loads(raw)["choices"][0]
        text = choice["message"]["content"]
        finish = choice.get("finish_reason") or "stop"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Answer(fault="bad_answer", detail=raw[:300].decode("utf-8", "replace"))
    if finish != "stop":
        return Answer(fault=f"finish.{finish}", detail=str(text)[:300])
    return Answer(text=text) if isinstance(text, str) else Answer(fault="empty")


def _wait_s(fault: _TryAgain, attempt: int, key: str) -> float:
    back_off_s = _FIRST_WAIT_S * 2**attempt * (0.5 + draw(key, f"back-off:{attempt}"))
    return min(_MOST_WAIT_S, max(back_off_s, fault.wait_s or 0.0))


def _retry_after_s(header: str | None) -> float | None:
    """Retry-After, given in seconds or as a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
